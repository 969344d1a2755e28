//! An ordinary Lightning node for the scenarios: `ldk-node` as published, knowing nothing of factories.
//!
//! `peer <data-dir> <listen HOST:PORT> <bitcoind RPC HOST:PORT> <RPC user> <RPC password>` runs the node until it is
//! told to stop; `<LSP NODE_ID@HOST:PORT>` behind it makes it a wallet that buys channels there (LSPS2). It is controlled over a loopback TCP port of its own, written to `<data-dir>/api-address`: one
//! connection a request, one line of JSON there and one back (see [`api`]). There is no authentication: this is a
//! tool for regtest alone and refuses any other network by having none to choose.

mod api;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{anyhow, bail, Context, Result};
use ldk_node::bitcoin::Network;
use ldk_node::lightning::ln::msgs::SocketAddress;
use ldk_node::logger::LogLevel;
use ldk_node::{Builder, Node};
use serde_json::{json, Value};

use crate::api::Held;

/// The longest request line that is read, in bytes.
const MAX_REQUEST: u64 = 64 * 1024;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (chain, lsp) = match arguments.as_slice() {
        [chain @ .., lsp] if chain.len() == 5 => (chain, Some(lsp.as_str())),
        chain => (chain, None),
    };
    let [data_dir, listen, rpc, user, password] = chain else {
        bail!(
            "usage: peer <data-dir> <listen HOST:PORT> <bitcoind RPC HOST:PORT> <RPC user> <RPC password> \
             [<LSP NODE_ID@HOST:PORT>]"
        );
    };
    let node = Arc::new(build(data_dir, listen, rpc, user, password, lsp)?);
    node.start().context("start the node")?;

    let api = TcpListener::bind("127.0.0.1:0").context("bind the control port")?;
    let address = api.local_addr()?;
    write_whole(&Path::new(data_dir).join("api-address"), &format!("{address}\n"))?;

    let stop = Arc::new(AtomicBool::new(false));
    let held = Arc::new(Held::default());
    let drain = std::thread::spawn({
        let (node, held, stop) = (node.clone(), held.clone(), stop.clone());
        move || drain_events(&node, &held, &stop)
    });
    for connection in api.incoming() {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let connection = connection.context("accept on the control port")?;
        let (node, held, stop) = (node.clone(), held.clone(), stop.clone());
        std::thread::spawn(move || {
            if let Err(error) = serve(&node, &held, &stop, connection, address) {
                eprintln!("control connection: {error:#}");
            }
        });
    }
    drain.join().map_err(|_| anyhow!("the event thread panicked"))?;
    node.stop().context("stop the node")
}

fn build(
    data_dir: &str,
    listen: &str,
    rpc: &str,
    user: &str,
    password: &str,
    lsp: Option<&str>,
) -> Result<Node> {
    fs::create_dir_all(data_dir).with_context(|| format!("make {data_dir}"))?;
    let listen: SocketAddress = listen.parse().map_err(|_| anyhow!("not a listen address: {listen}"))?;
    let (host, port) = rpc.rsplit_once(':').ok_or_else(|| anyhow!("not HOST:PORT: {rpc}"))?;
    let port = port.parse().with_context(|| format!("not a port: {port}"))?;

    let mut builder = Builder::new();
    builder.set_network(Network::Regtest);
    builder.set_storage_dir_path(data_dir.to_owned());
    builder.set_filesystem_logger(Some(format!("{data_dir}/ldk-node.log")), Some(LogLevel::Debug));
    builder.set_listening_addresses(vec![listen])?;
    builder.set_node_alias("ordinary".to_owned())?;
    builder.set_chain_source_bitcoind_rpc(host.to_owned(), port, user.to_owned(), password.to_owned());
    if let Some(lsp) = lsp {
        let (id, address) = lsp.split_once('@').ok_or_else(|| anyhow!("not NODE_ID@HOST:PORT: {lsp}"))?;
        let address = address.parse().map_err(|_| anyhow!("not an address: {address}"))?;
        builder.set_liquidity_source_lsps2(id.parse().context("LSP")?, address, None);
    }
    builder.build().context("build the node")
}

/// ldk-node stops handing out events until each is acknowledged. Of payments that are held only an event tells; other
/// states are read from the lists of payments and channels, so the rest goes to the log.
fn drain_events(node: &Node, held: &Held, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        match node.next_event() {
            Some(event) => {
                eprintln!("event: {event:?}");
                if let Err(error) = held.note(&event) {
                    eprintln!("note an event: {error}");
                }
                if let Err(error) = node.event_handled() {
                    eprintln!("acknowledge an event: {error}");
                }
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn serve(
    node: &Node,
    held: &Held,
    stop: &AtomicBool,
    stream: TcpStream,
    own: std::net::SocketAddr,
) -> Result<()> {
    let mut line = String::new();
    BufReader::new(stream.try_clone()?.take(MAX_REQUEST)).read_line(&mut line)?;
    if line.is_empty() {
        return Ok(()); // the connection that wakes the accepting loop
    }
    let answer =
        match serde_json::from_str(&line).context("not a request").and_then(|r| api::handle(node, held, r)) {
            Ok(value) => json!({ "ok": value }),
            Err(error) => json!({ "error": format!("{error:#}") }),
        };
    let stopping = matches!(serde_json::from_str::<Value>(&line), Ok(v) if v["method"] == "stop");
    let mut stream = stream;
    writeln!(stream, "{answer}")?;
    if stopping {
        stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(own);
    }
    Ok(())
}

/// Writes a file under another name first, so that a reader never sees half of it.
fn write_whole(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
    fs::rename(&new, path).with_context(|| format!("rename to {}", path.display()))
}
