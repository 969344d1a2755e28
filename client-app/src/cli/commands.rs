//! The commands that only a client has.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use ldk_node_ext::api::{FactoryInfo, JitMoveRequest, JitMoved, LiquidityAnswer, LiquidityRequest, NodeInfo};
use ldk_node_ext::http::cli::{closing, rotating, the_factory, ExitArgs, Output, WaitArgs};
use ldk_node_ext::http::{show, ApiClient, HttpError};
use ldk_node_ext::watch::ExitFile;
use serde_json::{json, Value};

/// How much longer than the wait of a request its answer may take.
const MARGIN: Duration = Duration::from_secs(65);

/// Commands against a running client.
#[derive(Subcommand, Clone, Debug)]
pub enum ClientCommand {
    /// Leave a factory without anybody's help, and wait until the money is in the wallet
    Exit(ExitArgs),
    /// Write all that a watcher needs to guard this wallet's leaf of a factory; it holds no secret
    ExportExit {
        /// Where to write; a file that is there is replaced
        file: PathBuf,
        /// Instance id, or the beginning of it; not needed if only one factory is alive
        instance_id: Option<String>,
    },
    /// Ask the LSP for inbound liquidity: the channel grows out of the stock of its leaf; waits until it has
    BuyLiquidity {
        /// How much, sat
        #[arg(long, value_name = "SAT", value_parser = clap::value_parser!(u32).range(1..))]
        sat: u32,
        /// Instance id, or the beginning of it; not needed if only one factory is alive
        instance_id: Option<String>,
        /// Whether to wait.
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Give inbound liquidity back to the LSP, and wait until the channel is smaller
    GiveBackLiquidity {
        /// How much, sat
        #[arg(long, value_name = "SAT", value_parser = clap::value_parser!(u32).range(1..))]
        sat: u32,
        /// Instance id, or the beginning of it; not needed if only one factory is alive
        instance_id: Option<String>,
        /// Whether to wait.
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Move the money of a channel that the LSP opened beside the factory into the factory, and close the channel
    MoveIn {
        /// Channel id; not needed if there is only one such channel
        channel_id: Option<String>,
        /// How long to wait for the payments, seconds, at most 600
        #[arg(long, value_name = "SECS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(..=600))]
        wait_secs: u64,
    },
    /// Ask the LSP to close a factory, and wait until the closing transaction is confirmed
    Close {
        /// Instance id, or the beginning of it; not needed if only one factory is alive
        instance_id: Option<String>,
        /// Whether to wait.
        #[command(flatten)]
        wait: WaitArgs,
    },
}

/// Asks for another capacity.
fn ask(
    client: &ApiClient,
    output: Output,
    change_sat: i64,
    (instance_id, wait): (Option<&str>, WaitArgs),
) -> Result<(), HttpError> {
    let id = the_factory(client, instance_id)?;
    let request = LiquidityRequest { change_sat, ..LiquidityRequest::default() };
    let asked: LiquidityAnswer = client.post(&format!("/v1/factories/{id}/liquidity"), &request)?;
    let text = format!("{} sat", asked.capacity_sat);
    if wait.no_wait {
        return output
            .show(&asked, |a| format!("asked the LSP for a channel of {text}, at position {}", a.from));
    }
    let own = client.get::<NodeInfo>("/v1/info")?.node_id;
    let factory = rotating(client, &id, (own.as_str(), asked.from), wait)?;
    output.show(&factory, |_| format!("the channel has {text}"))
}

fn moved_text(m: &JitMoved) -> String {
    let end = match &m.not_closed {
        None => "the channel is being closed".to_owned(),
        Some(why) => format!("the channel stays open, with {} msat to move: {why}", m.left_msat),
    };
    format!("{} msat moved into the factory; {end}", m.moved_msat)
}

impl ClientCommand {
    /// Runs the command and prints its outcome.
    ///
    /// # Errors
    /// [`HttpError`].
    pub fn execute(self, client: &ApiClient, output: Output) -> Result<(), HttpError> {
        match self {
            Self::Exit(args) => args.execute(client, output, None),
            Self::ExportExit { file, instance_id } => {
                let id = the_factory(client, instance_id.as_deref())?;
                let exit: ExitFile = client.get(&format!("/v1/factories/{id}/exit-file"))?;
                exit.verify()?;
                exit.write(&file)?;
                let height = exit.path.expiry_height;
                let written = json!({"file": file, "instance_id": id, "expiry_height": height});
                output.show(&written, |_| format!("wrote {}; next: client-app watch {0}", file.display()))
            }
            Self::BuyLiquidity { sat, instance_id, wait } => {
                ask(client, output, i64::from(sat), (instance_id.as_deref(), wait))
            }
            Self::GiveBackLiquidity { sat, instance_id, wait } => {
                ask(client, output, i64::from(sat).saturating_neg(), (instance_id.as_deref(), wait))
            }
            Self::MoveIn { channel_id, wait_secs } => {
                let request = JitMoveRequest { channel_id, wait_secs: Some(wait_secs) };
                let limit = Duration::from_secs(wait_secs).saturating_add(MARGIN);
                let moved: JitMoved = client.post_within("/v1/jit/move", &request, limit)?;
                output.show(&moved, moved_text)
            }
            Self::Close { instance_id, wait } => {
                let id = the_factory(client, instance_id.as_deref())?;
                let answer: Value = client.post(&format!("/v1/factories/{id}/close"), &json!({}))?;
                if wait.no_wait {
                    return output.show(&answer, |_| format!("asked the LSP to close factory {id}"));
                }
                output.show(&closing(client, &id, wait)?, |f: &FactoryInfo| {
                    f.close.as_ref().map_or("closed".into(), show::close_text)
                })
            }
        }
    }
}
