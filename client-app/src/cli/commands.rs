//! The commands that only a client has.

use std::path::PathBuf;

use clap::Subcommand;
use ldk_node_ext::api::FactoryInfo;
use ldk_node_ext::http::cli::{closing, the_factory, ExitArgs, Output, WaitArgs};
use ldk_node_ext::http::{show, ApiClient, HttpError};
use ldk_node_ext::watch::ExitFile;
use serde_json::{json, Value};

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
    /// Ask the LSP to close a factory, and wait until the closing transaction is confirmed
    Close {
        /// Instance id, or the beginning of it; not needed if only one factory is alive
        instance_id: Option<String>,
        /// Whether to wait.
        #[command(flatten)]
        wait: WaitArgs,
    },
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
