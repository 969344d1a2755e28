//! The command-line wallet: `client-app init` makes one, `client-app run` runs it, every other command
//! talks to a running one.
//!
//! It is thin: settings and commands here, the wallet in the library.

mod cli;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ldk_node_ext::http::cli::watch::{self, WatchArgs};
use ldk_node_ext::http::cli::{block_on, environment, finish, GlobalArgs, NodeCommand, Output};
use ldk_node_ext::http::{init_logging, serve_node, ApiClient, HttpError};

use cli::commands::ClientCommand;
use cli::init;
use cli::settings::{resolve, RunArgs, PREFIX};

/// Where everything is kept unless told otherwise, below the home directory.
const DATA_DIR: &str = ".client-app";

/// Lightning wallet with channels in factories.
///
/// The data directory is --data-dir, else CLIENT_APP_DATA_DIR, else ~/.client-app. Every flag of `run`
/// is also an environment variable (--poll-ms is CLIENT_APP_POLL_MS) and a key of the config file
/// (poll_ms); a flag wins over the environment, and the environment over the file.
///
/// `watch` needs no wallet and may run elsewhere: its data directory is --data-dir, else
/// EXIT_WATCH_DATA_DIR, else ~/.exit-watch, and its settings begin with EXIT_WATCH.
#[derive(Parser)]
#[command(name = "client-app", version)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a new wallet: seed and config file with the settings given
    Init(Box<RunArgs>),
    /// Run the wallet until `stop`, SIGTERM or SIGINT
    Run(Box<RunArgs>),
    /// Guard leaves by exit files or shared folders, without any key of theirs, until SIGTERM or SIGINT
    Watch(Box<WatchArgs>),
    /// Show what the watcher of a data directory says
    WatchStatus,
    #[command(flatten)]
    Client(ClientCommand),
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
    finish(data_dir.and_then(|data_dir| execute(cli.command, data_dir, output)), output)
}

fn execute(command: Command, data_dir: PathBuf, output: Output) -> Result<(), HttpError> {
    match command {
        Command::Init(args) => output.show(&init::init(*args, data_dir, environment())?, init::text),
        Command::Run(args) => {
            init_logging();
            let (config, api) = resolve(*args, data_dir, environment())?;
            block_on(serve_node(config, api, |_| axum::Router::new()))
        }
        Command::Watch(args) => {
            init_logging();
            let (config, files) = watch::configure(*args, data_dir, environment())?;
            block_on(watch::run(config, files, output))
        }
        Command::WatchStatus => watch::show(&data_dir, output),
        Command::Client(command) => command.execute(&ApiClient::open(&data_dir)?, output),
        Command::Node(command) => command.execute(&ApiClient::open(&data_dir)?, output),
    }
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
    fn init_and_run_take_the_same_flags() {
        let id = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
        let flags = format!(
            "--data-dir /d --network regtest --lsp {id}@127.0.0.1:9735 --bitcoind-rpc 127.0.0.1:18443 \
             --bitcoind-cookie /c --poll-ms 200 --join false"
        );
        for command in ["init", "run"] {
            let parsed = parse(&format!("client-app {command} {flags}")).ok().map(|cli| cli.command);
            let Some(Command::Init(args) | Command::Run(args)) = parsed else { panic!("{command}") };
            assert_eq!((args.client.join, args.common.poll_ms), (Some(false), Some(200)));
        }
        let wrong = parse(&format!("client-app run --lsp {id}")).err();
        assert_eq!(wrong, Some(ClapError::ValueValidation));
    }

    #[test]
    fn every_command_is_there() {
        for name in
            "info balance address invoice offer payments channels factories exit close stop".split(' ')
        {
            assert!(parse(&format!("client-app --data-dir /d {name} --json")).is_ok(), "{name}");
        }
        for line in ["watch a.json b.json --max-fee-sat 50000", "watch-status", "export-exit a.json"] {
            assert!(parse(&format!("client-app --data-dir /d {line}")).is_ok(), "{line}");
        }
        assert!(parse("client-app watch --watch-folders /a,/b").is_ok());
        assert!(parse("client-app pay lnbcrt1 --amount-msat 5 --wait-secs 600").is_ok());
        assert!(parse("client-app pay lno1 --sat 5").is_ok());
        assert_eq!(parse("client-app pay lnbcrt1 --wait-secs 601").err(), Some(ClapError::ValueValidation));
    }
}
