//! The operator's binary: `lsp-server run` is the LSP, every other command talks to a running one.
//!
//! It is thin: settings and commands here, the node in `ldk-node-ext`.

mod api;
mod commands;
mod jit_policy;
mod settings;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ldk_node_ext::http::cli::watch::{self, WatchArgs};
use ldk_node_ext::http::cli::{block_on, environment, finish, GlobalArgs, NodeCommand};
use ldk_node_ext::http::{create_data_dir, init_logging, serve_node, ApiClient, HttpError};
use ldk_node_ext::{init_seed, ErrorKind};

use commands::LspCommand;
use settings::{RunArgs, PREFIX};

/// Where everything is kept unless told otherwise, below the home directory.
const DATA_DIR: &str = ".lsp-server";

/// Lightning service provider with channel factories.
///
/// The data directory is --data-dir, else LSP_SERVER_DATA_DIR, else ~/.lsp-server. Every flag of `run`
/// is also an environment variable (--poll-ms is LSP_SERVER_POLL_MS) and a key of the config file
/// (poll_ms); a flag wins over the environment, and the environment over the file.
#[derive(Parser)]
#[command(name = "lsp-server", version)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the LSP until `stop`, SIGTERM or SIGINT
    Run(Box<RunArgs>),
    /// Guard leaves by exit files or shared folders, without any key of theirs, until SIGTERM or SIGINT
    Watch(Box<WatchArgs>),
    /// Show what the watcher of a data directory says
    WatchStatus,
    #[command(flatten)]
    Lsp(LspCommand),
    #[command(flatten)]
    Node(NodeCommand),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = cli.global.output();
    let data_dir = match cli.command {
        Command::Watch(_) | Command::WatchStatus => cli.global.data_dir(watch::PREFIX, watch::DATA_DIR),
        _ => cli.global.data_dir(PREFIX, DATA_DIR),
    };
    let result = data_dir.and_then(|data_dir| match cli.command {
        Command::Run(args) => run(*args, data_dir),
        Command::Watch(args) => {
            init_logging();
            let (config, files) = watch::configure(*args, data_dir, environment())?;
            block_on(watch::run(config, files, output))
        }
        Command::WatchStatus => watch::show(&data_dir, output),
        Command::Lsp(command) => command.execute(&ApiClient::open(&data_dir)?, output),
        Command::Node(command) => command.execute(&ApiClient::open(&data_dir)?, output),
    });
    finish(result, output)
}

fn run(args: RunArgs, data_dir: PathBuf) -> Result<(), HttpError> {
    init_logging();
    let (config, api) = settings::resolve(args, data_dir, environment())?;
    create_data_dir(&config.data_dir)?;
    match init_seed(&config.data_dir) {
        Ok(()) => tracing::warn!(
            data_dir = %config.data_dir.display(),
            "made a new seed: back it up, all money of this node depends on it"
        ),
        Err(e) if e.kind() == ErrorKind::Conflict => {}
        Err(e) => return Err(e.into()),
    }
    block_on(serve_node(config, api, api::routes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::error::ErrorKind as ClapError;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, ClapError> {
        Cli::try_parse_from(line.split_whitespace()).map_err(|e| e.kind())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_takes_every_setting_as_a_flag() {
        let line = "lsp-server run --data-dir /d --network regtest --listen 127.0.0.1:0 --api 127.0.0.1:0 \
                    --bitcoind-rpc 127.0.0.1:18443 --bitcoind-user u --bitcoind-pass p --poll-ms 200 \
                    --dangerously-expose-api --min-clients 3";
        let Ok(Cli { global, command: Command::Run(args) }) = parse(line) else { panic!("not run") };
        assert_eq!(global.data_dir, Some("/d".into()));
        assert_eq!(args.common.dangerously_expose_api, Some(true));
        assert_eq!((args.common.poll_ms, args.lsp.min_clients), (Some(200), Some(3)));
        assert_eq!(parse("lsp-server run --poll-ms often").err(), Some(ClapError::ValueValidation));
        assert_eq!(parse("lsp-server run --pol-ms 1").err(), Some(ClapError::UnknownArgument));
    }

    #[test]
    fn create_factory_takes_all_or_some() {
        let request = |line: &str| match parse(line) {
            Ok(Cli { command: Command::Lsp(LspCommand::CreateFactory(args)), .. }) => Ok(args.request()),
            Ok(_) => panic!("another command"),
            Err(e) => Err(e),
        };
        let all = request("lsp-server create-factory --all --capacity-sat 50000 --push-sat 10").unwrap();
        assert!(all.all && all.clients.is_empty() && all.params.is_none());
        let line =
            "lsp-server create-factory --client 02aa:50000 --client 02bb:60000:7 --arity 8,4 --active 10";
        let some = request(line).unwrap();
        assert_eq!((some.clients.len(), some.clients[1].push_sat), (2, 7));
        let params = some.params.unwrap();
        assert_eq!((params.arity, params.active, params.dying), (Some(vec![8, 4]), Some(10), None));
        for (wrong, kind) in [
            ("lsp-server create-factory", ClapError::MissingRequiredArgument),
            ("lsp-server create-factory --all", ClapError::MissingRequiredArgument),
            ("lsp-server create-factory --all --capacity-sat 5 --client a:1", ClapError::ArgumentConflict),
            ("lsp-server create-factory --client a:1 --push-sat 5", ClapError::MissingRequiredArgument),
            (
                "lsp-server create-factory --all --capacity-sat 5 --no-wait --wait-secs 3",
                ClapError::ArgumentConflict,
            ),
        ] {
            assert_eq!(request(wrong).unwrap_err(), kind, "{wrong}");
        }
    }

    #[test]
    fn commands_of_both_sides_are_there() {
        for name in "info balance address channels invoice payments factories events stop clients".split(' ')
        {
            assert!(parse(&format!("lsp-server --json {name} --data-dir /d")).is_ok(), "{name}");
        }
    }
}
