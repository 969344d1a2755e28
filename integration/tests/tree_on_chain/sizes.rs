//! What one exit takes, in virtual bytes and in blocks: what the planner says beside what the chain says.

use anyhow::Result;
use bitcoin::Network;
use factory_core::params::Params;
use factory_core::planner::{exit_steps, plan};
use factory_core::sizes;

use super::factory::Factory;

/// Publishes the path of the first client, whose is the largest, and compares.
fn exit(clients: usize) -> Result<()> {
    let params = Params::default_with(clients, 1, Network::Regtest)?;
    let (report, steps) = (plan(&params, clients)?, exit_steps(&params, clients, 0)?);
    let mut factory = Factory::create(clients, params.clone())?;
    let path = factory.path(0)?;
    let arity: Vec<_> = params.shape.arity.iter().map(u16::to_string).collect();
    println!("N = {clients}, tree {}: transactions of one exit", arity.join("x"));
    let child = sizes::child().vbytes();
    let begun = factory.bitcoind.height()?;
    let (mut vbytes, mut due) = (0, begun);
    for (tx, step) in path.iter().zip(&steps) {
        let height = factory.publish(tx)?;
        due += u32::from(step.delay).max(1);
        let size = factory.bitcoind.confirmed(tx.txid())?.map_or(0, |c| c.tx.vsize());
        println!(
            "  {:<42} {size:>5} vB and {child} of its child, delay {:>3}, block {:>3}",
            tx.kind.to_string(),
            step.delay,
            height - begun
        );
        assert_eq!(u64::try_from(size)?, step.size.vbytes(), "{}", tx.kind);
        assert_eq!(u32::from(tx.relative_delay), u32::from(step.delay), "{}", tx.kind);
        assert_eq!(height, due, "{}", tx.kind);
        vbytes += u64::try_from(size)? + child;
    }
    factory.check_leaf(0)?;
    let commitment = sizes::commitment().vbytes() + child;
    assert_eq!(vbytes + commitment, report.exit_vbytes);
    let all = factory.signed.iter().flat_map(|(txs, _)| txs);
    let tree: u64 = all.map(|tx| tx.weight().div_ceil(4) + child).sum();
    assert_eq!(tree, report.tree_vbytes);
    // The planner counts a block for each confirmation on top of its delay; the last block of the delay is that block.
    let delayed = steps.iter().filter(|step| step.delay > 0).count();
    let blocks = due - begun;
    let to_spend = blocks + 1 + u32::from(params.to_self_delay) + u32::from(params.reorg_margin);
    assert_eq!(to_spend + u32::try_from(delayed)?, report.exit_fast);
    println!(
        "  path {vbytes} vB with children, exit {} vB with the commitment, sweep {} vB; whole tree {tree} vB, with \
         commitments {} vB",
        report.exit_vbytes, report.sweep_vbytes, report.tree_with_commitments_vbytes
    );
    println!(
        "  {blocks} blocks to the leaf, {to_spend} until the money is final; planned at most {} (and {} at {} blocks \
         a confirmation)\n",
        report.exit_fast, report.exit_worst, report.confirm_blocks
    );
    Ok(())
}

#[test]
#[ignore = "long: make bench"]
fn exits_are_as_large_and_as_long_as_planned() -> Result<()> {
    for clients in [8, 128, 512] {
        exit(clients)?;
    }
    Ok(())
}
