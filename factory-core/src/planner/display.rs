//! The report as a table for an operator.

use std::fmt;

use crate::planner::limits::SECONDS_PER_BLOCK;
use crate::planner::PlanReport;

/// Blocks in a day at the mean block interval.
const BLOCKS_PER_DAY: u32 = 24 * 60 * 60 / SECONDS_PER_BLOCK;

struct Table<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Table<'_, '_> {
    fn head(&mut self, title: &str) -> fmt::Result {
        writeln!(self.0, "{title}")
    }

    fn row(&mut self, name: &str, value: impl fmt::Display) -> fmt::Result {
        writeln!(self.0, "  {name:<46} {value}")
    }

    fn blocks(&mut self, name: &str, blocks: u32) -> fmt::Result {
        let days = f64::from(blocks) / f64::from(BLOCKS_PER_DAY);
        self.row(name, format_args!("{blocks} blocks ({days:.1} days)"))
    }

    fn two(&mut self, name: &str, fast: u32, worst: u32) -> fmt::Result {
        self.row(name, format_args!("{fast} / {worst} blocks"))
    }
}

impl fmt::Display for PlanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut t = Table(f);
        self.tree(&mut t)?;
        self.times(&mut t)?;
        self.htlcs(&mut t)?;
        self.work(&mut t)?;
        self.bytes(&mut t)
    }
}

impl PlanReport {
    fn tree(&self, t: &mut Table<'_, '_>) -> fmt::Result {
        let shape = if self.arity.is_empty() {
            "one leaf".to_owned()
        } else {
            self.arity.iter().map(u16::to_string).collect::<Vec<_>>().join("x")
        };
        t.head("tree")?;
        t.row("clients / leaves", format_args!("{} / {}", self.clients, self.leaves))?;
        t.row("shape, clients a leaf", format_args!("{shape}, {}", self.clients_per_leaf))?;
        for (index, level) in self.levels.iter().enumerate() {
            let kind = if level.layers == 0 {
                "static".to_owned()
            } else {
                format!("kickoff + {} states", level.layers)
            };
            t.row(
                &format!("level {index}"),
                format_args!(
                    "{} nodes, up to {} signers, {} outputs, {} vB, {kind}",
                    level.nodes, level.signers, level.outputs, level.vbytes
                ),
            )?;
        }
        t.row(
            "updates per leaf / factory",
            format_args!("{} / {}", self.updates_per_leaf, self.updates_per_factory),
        )
    }

    fn times(&self, t: &mut Table<'_, '_>) -> fmt::Result {
        t.head(&format!("times (1 / {} blocks for a confirmation)", self.confirm_blocks))?;
        t.two("worst exit, money final", self.exit_fast, self.exit_worst)?;
        t.two("claim budget (HTLC exit)", self.claim_fast, self.claim_worst)?;
        t.blocks("race window between states", self.race_window.into())?;
        t.blocks("notice after a kickoff", self.notice.into())?;
        t.blocks("active period", self.active)?;
        t.blocks("dying period", self.dying)?;
        t.blocks("birth to expiry", self.lifetime)?;
        t.row("earliest distribution before the expiry", format_args!("{} blocks", self.distribution_spread))
    }

    fn htlcs(&self, t: &mut Table<'_, '_>) -> fmt::Result {
        t.head("HTLCs")?;
        t.row("exit starts before an HTLC's expiry", format_args!("{} blocks", self.early_warning))?;
        t.row(
            "min_final_cltv_expiry_delta",
            format_args!("{} (patience {})", self.min_final_cltv_expiry_delta, self.patience),
        )?;
        t.row("left for a route, default sender", format_args!("{} blocks", self.route_left_sender))?;
        t.row("left for a route, limit of 2016", format_args!("{} blocks", self.route_left_limit))?;
        match self.route_left_two_factories {
            Some(left) => t.row("left between two factories", format_args!("{left} blocks")),
            None => t.row("left between two factories", "none: such payments are not possible"),
        }
    }

    fn work(&self, t: &mut Table<'_, '_>) -> fmt::Result {
        t.head("ceremony")?;
        t.row(
            "MuSig2 sessions, tree + distributions",
            format_args!("{} + {}", self.tree_sessions, self.distribution_sessions),
        )?;
        t.row(
            "partial signatures, all / provider / client",
            format_args!("{} / {} / {}", self.partials, self.partials_provider, self.partials_per_client),
        )?;
        t.row(
            "client stores, path + distributions",
            format_args!("{} + {} bytes", self.path_bytes, self.distribution_bytes),
        )
    }

    fn bytes(&self, t: &mut Table<'_, '_>) -> fmt::Result {
        t.head("bytes and money")?;
        t.row("one exit + sweep", format_args!("{} + {} vB", self.exit_vbytes, self.sweep_vbytes))?;
        t.row("dearest package of an exit", format_args!("{} vB", self.dearest_package_vbytes))?;
        t.row(
            "whole tree, with commitments",
            format_args!("{} / {} vB", self.tree_vbytes, self.tree_with_commitments_vbytes),
        )?;
        for cost in &self.costs {
            t.row(
                &format!("exit at {} sat/vB, with sweep", cost.sat_per_vbyte),
                format_args!("{} / {} sat", cost.exit, cost.with_sweep),
            )?;
        }
        Ok(())
    }
}
