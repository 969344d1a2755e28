//! Waits for a factory to be made, closed or left, and tells on stderr how far it is.

use std::time::{Duration, Instant};

use clap::Args;

use super::super::{segment, show, ApiClient, HttpError};
use crate::api::{ExitInfo, FactoryInfo, FactoryState, LeafInfo};

/// Between two looks.
const EVERY: Duration = Duration::from_millis(400);
/// Length of an instance id, hexadecimal digits.
const ID_DIGITS: usize = 64;

/// Whether to wait for the outcome. Ending the command never ends the work.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct WaitArgs {
    /// Return at once; the work goes on
    #[arg(long)]
    pub no_wait: bool,
    /// Wait no longer than this many seconds, then exit with code 3; the work goes on
    #[arg(long, value_name = "SECONDS", conflicts_with = "no_wait")]
    pub wait_secs: Option<u64>,
}

/// What one look at a factory says.
struct Look {
    lines: Vec<String>,
    verdict: Option<Result<(), String>>,
}

/// Waits until a factory is alive.
///
/// # Errors
/// [`HttpError::Outcome`] if it failed, [`HttpError::StillWaiting`].
pub fn creating(client: &ApiClient, id: &str, args: WaitArgs) -> Result<FactoryInfo, HttpError> {
    follow(client, id, args, look_at_creation)
}

/// Waits until the cooperative close of a factory is confirmed.
///
/// # Errors
/// As [`creating`].
pub fn closing(client: &ApiClient, id: &str, args: WaitArgs) -> Result<FactoryInfo, HttpError> {
    follow(client, id, args, look_at_close)
}

/// Waits until a leaf has been left and the money is swept: a client's own, or the one of a client of an
/// LSP's.
///
/// # Errors
/// As [`creating`].
pub fn exiting(
    client: &ApiClient,
    id: &str,
    whose: Option<&str>,
    args: WaitArgs,
) -> Result<FactoryInfo, HttpError> {
    follow(client, id, args, |f| look_at_exit(f, whose))
}

/// Waits until a rotation of a client's leaf is over, which began at this position: `from` is how far the leaf's
/// odometer had gone.
///
/// # Errors
/// As [`creating`].
pub fn rotating(
    client: &ApiClient,
    id: &str,
    (whose, from): (&str, u64),
    args: WaitArgs,
) -> Result<FactoryInfo, HttpError> {
    follow(client, id, args, |f| look_at_rotation(f, whose, from))
}

/// The leaf of a client.
pub fn leaf_of<'a>(f: &'a FactoryInfo, whose: &str) -> Option<&'a LeafInfo> {
    f.leaves.iter().find(|leaf| leaf.clients.iter().any(|c| c == whose))
}

/// The exit that is meant: that of a client's leaf, or the only one.
pub fn exit_of<'a>(f: &'a FactoryInfo, whose: Option<&str>) -> Option<&'a ExitInfo> {
    let own = f.exits.iter().find(|e| whose.is_none_or(|node| e.node_id == node));
    own.or_else(|| f.exits.iter().find(|e| e.clients.iter().any(|c| Some(c.as_str()) == whose)))
}

fn look_at_creation(f: &FactoryInfo) -> Look {
    let verdict = match f.state {
        FactoryState::Failed => Some(Err(f.failure.clone().unwrap_or_else(|| "failed".into()))),
        FactoryState::Inviting
        | FactoryState::Planning
        | FactoryState::Opening
        | FactoryState::Funding
        | FactoryState::Nonces
        | FactoryState::Partials
        | FactoryState::Persisting
        | FactoryState::Confirming => None,
        FactoryState::Active
        | FactoryState::Dying
        | FactoryState::Closing
        | FactoryState::Closed
        | FactoryState::Exiting
        | FactoryState::Exited => Some(Ok(())),
    };
    let left_out = f.excluded.iter().map(|e| format!("left out {}: {}", e.node_id, e.reason));
    Look { lines: left_out.chain(show::creation_progress(f)).collect(), verdict }
}

fn look_at_close(f: &FactoryInfo) -> Look {
    const PHASES: [&str; 5] = ["asking", "shutting", "signing", "broadcast", "confirmed"];
    let mut lines = Vec::new();
    let mut verdict = match f.state {
        FactoryState::Closed => Some(Ok(())),
        FactoryState::Exiting | FactoryState::Exited => {
            Some(Err("the factory is being left through its tree instead".to_owned()))
        }
        FactoryState::Failed => Some(Err(f.failure.clone().unwrap_or_else(|| "failed".into()))),
        _ => None,
    };
    if let Some(close) = &f.close {
        let at = PHASES.iter().position(|p| *p == close.phase);
        let bar = show::bar(at.map_or(0, |at| at + 1), PHASES.len(), PHASES.len());
        let reason = close.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
        lines.push(format!("{bar} {:<10}{reason}", close.phase));
        if verdict.is_none() && close.phase == "failed" {
            verdict = Some(Err(close.reason.clone().unwrap_or_else(|| "the close failed".into())));
        }
    }
    Look { lines, verdict }
}

fn look_at_rotation(f: &FactoryInfo, whose: &str, from: u64) -> Look {
    let Some(leaf) = leaf_of(f, whose) else {
        return Look { lines: Vec::new(), verdict: Some(Err("the factory has no such leaf".into())) };
    };
    let verdict = match (&leaf.rotating, &leaf.failure) {
        (Some(_), _) => None,
        (None, Some(failure)) => Some(Err(failure.clone())),
        (None, None) if leaf.position > from => Some(Ok(())),
        // The LSP has forgotten it in a restart.
        (None, None) => Some(Err("the rotation came to nothing; the state is the one before".to_owned())),
    };
    Look { lines: leaf.rotating.iter().cloned().collect(), verdict }
}

fn look_at_exit(f: &FactoryInfo, whose: Option<&str>) -> Look {
    let exit = exit_of(f, whose);
    let mut lines = Vec::new();
    if let Some(exit) = exit {
        let total = exit.steps.len();
        lines.extend(exit.steps.iter().enumerate().map(|(i, s)| show::step(i + 1, total, s)));
        if let Some(txid) = &exit.commitment_txid {
            let at = exit
                .commitment_height
                .map_or("waits for the path".into(), |h| format!("confirmed at height {h}"));
            lines.push(format!("commitment {}: {at}", show::short(txid)));
        }
        lines.push(show::exit_state(exit));
    }
    let verdict = match f.state {
        FactoryState::Failed => Some(Err(f.failure.clone().unwrap_or_else(|| "failed".into()))),
        FactoryState::Closed => Some(Err("the factory was closed by agreement instead".to_owned())),
        FactoryState::Exited if whose.is_none() => Some(Ok(())),
        _ if exit.is_some_and(|e| e.phase == "done") => Some(Ok(())),
        _ => None,
    };
    Look { lines, verdict }
}

fn follow(
    client: &ApiClient,
    id: &str,
    args: WaitArgs,
    look: impl Fn(&FactoryInfo) -> Look,
) -> Result<FactoryInfo, HttpError> {
    let path = format!("/v1/factories/{}", segment("instance_id", id)?);
    let start = Instant::now();
    let mut told: Vec<String> = Vec::new();
    loop {
        let factory: FactoryInfo = client.get(&path)?;
        let Look { lines, verdict } = look(&factory);
        for line in lines.iter().filter(|line| !told.contains(line)) {
            eprintln!("{:>6.1} s  {line}", start.elapsed().as_secs_f64());
        }
        told = lines;
        match verdict {
            Some(Ok(())) => return Ok(factory),
            Some(Err(reason)) => return Err(HttpError::Outcome(reason)),
            None => {}
        }
        if let Some(secs) = args.wait_secs.filter(|secs| start.elapsed().as_secs() >= *secs) {
            let what = format!("factory {}", factory.instance_id);
            return Err(HttpError::StillWaiting { what, state: show::state(factory.state).into(), secs });
        }
        std::thread::sleep(EVERY);
    }
}

/// The instance id that is meant: a whole one, the beginning of one, or, if none is given, that of
/// the only factory that is alive.
///
/// # Errors
/// [`HttpError::Outcome`] if there is none or more than one.
pub fn the_factory(client: &ApiClient, given: Option<&str>) -> Result<String, HttpError> {
    let start = match given {
        Some(id) => segment("instance_id", id)?.to_lowercase(),
        None => String::new(),
    };
    if start.len() == ID_DIGITS {
        return Ok(start);
    }
    let all: Vec<FactoryInfo> = client.get("/v1/factories")?;
    choose(&all, &start).map_err(HttpError::Outcome)
}

fn choose(all: &[FactoryInfo], start: &str) -> Result<String, String> {
    let over =
        |s: FactoryState| matches!(s, FactoryState::Closed | FactoryState::Exited | FactoryState::Failed);
    let mut found = all.iter().filter(|f| match start {
        "" => !over(f.state),
        start => f.instance_id.starts_with(start),
    });
    match (found.next(), found.next()) {
        (Some(f), None) => Ok(f.instance_id.clone()),
        (Some(_), Some(_)) if start.is_empty() => {
            Err("more than one factory is alive: give the beginning of an instance id".into())
        }
        (Some(_), Some(_)) => {
            Err(format!("more than one factory begins with {start}: give more of its instance id"))
        }
        (None, _) if start.is_empty() => Err("no factory is alive".into()),
        (None, _) => Err(format!("no factory begins with {start}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::show::tests::sample;
    use super::*;
    use crate::api::CloseInfo;

    #[test]
    fn creation_ends_alive_or_with_the_reason() {
        let mut f = sample();
        assert_eq!(look_at_creation(&f).verdict, Some(Ok(())));
        f.state = FactoryState::Nonces;
        assert_eq!(look_at_creation(&f).verdict, None);
        (f.state, f.failure) = (FactoryState::Failed, Some("only 1 client left".into()));
        assert_eq!(look_at_creation(&f).verdict, Some(Err("only 1 client left".into())));
    }

    #[test]
    fn close_ends_confirmed_or_failed() {
        let mut f = sample();
        assert_eq!(look_at_close(&f).verdict, None, "asked, but the LSP has not begun");
        let mut close = CloseInfo {
            phase: "signing".into(),
            reason: None,
            txid: None,
            height: None,
            confirmations: 0,
            paid: vec![],
            to_fees: vec![],
            fee_sat: 0,
        };
        f.state = FactoryState::Closing;
        f.close = Some(close.clone());
        let look = look_at_close(&f);
        assert_eq!((look.verdict, look.lines[0].trim_end()), (None, "[###··] signing"));
        (close.phase, close.reason) = ("failed".into(), Some("02bb is away".into()));
        f.close = Some(close);
        assert_eq!(look_at_close(&f).verdict, Some(Err("02bb is away".into())));
        f.state = FactoryState::Closed;
        assert_eq!(look_at_close(&f).verdict, Some(Ok(())));
    }

    #[test]
    fn rotation_ends_at_a_newer_position_or_with_the_reason() {
        let mut f = sample();
        assert!(matches!(look_at_rotation(&f, "02aa", 0).verdict, Some(Err(_))), "no such leaf");
        f.leaves.push(LeafInfo {
            clients: vec!["02aa".into()],
            digits: vec![0, 1],
            position: 1,
            left: 2,
            left_above: 0,
            superseded: 1,
            rotating: Some("signing".into()),
            failure: None,
        });
        assert_eq!(look_at_rotation(&f, "02aa", 0).verdict, None);
        f.leaves[0].rotating = None;
        assert_eq!(look_at_rotation(&f, "02aa", 0).verdict, Some(Ok(())));
        assert!(matches!(look_at_rotation(&f, "02aa", 1).verdict, Some(Err(_))), "restarted");
        f.leaves[0].failure = Some("client 02aa: gone".into());
        assert_eq!(look_at_rotation(&f, "02aa", 1).verdict, Some(Err("client 02aa: gone".into())));
    }

    #[test]
    fn exit_ends_when_the_money_is_swept() {
        let mut f = sample();
        f.state = FactoryState::Exiting;
        f.exits.push(ExitInfo {
            node_id: "02aa".into(),
            clients: vec!["02aa".into()],
            reason: "asked for by the user".into(),
            phase: "sweep".into(),
            waits_for: "144 blocks".into(),
            waits_until_height: None,
            started_height: Some(100),
            expected_end_height: Some(300),
            steps: vec![],
            commitment_txid: None,
            commitment_height: None,
            distribution_txid: None,
            fees_sat: 0,
            fees_to_come_sat: 0,
            max_fee_sat: None,
            needs_coin_sat: None,
            over_budget_sat: None,
        });
        assert_eq!(look_at_exit(&f, None).verdict, None);
        assert!(exit_of(&f, Some("02bb")).is_none());
        f.exits[0].phase = "done".into();
        assert_eq!(look_at_exit(&f, None).verdict, Some(Ok(())));
        assert_eq!(look_at_exit(&f, Some("02aa")).verdict, Some(Ok(())));
        assert_eq!(look_at_exit(&f, Some("02bb")).verdict, None);
    }

    #[test]
    fn a_factory_is_found_by_its_beginning_or_by_being_the_only_one() {
        let mut other = sample();
        other.instance_id = "ce".repeat(32);
        let mut all = vec![sample(), other];
        assert_eq!(choose(&all, "ce").unwrap(), "ce".repeat(32));
        assert!(choose(&all, "c").unwrap_err().contains("more than one"));
        assert!(choose(&all, "").unwrap_err().contains("more than one factory is alive"));
        assert!(choose(&all, "ff").unwrap_err().contains("ff"));
        all[1].state = FactoryState::Closed;
        assert_eq!(choose(&all, "").unwrap(), "cd".repeat(32));
    }
}
