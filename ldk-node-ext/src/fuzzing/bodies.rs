//! What users write: bodies and addresses of requests, settings.

use axum::http::Uri;
use bitcoin::Network;
use lightning_invoice::Bolt11Invoice;
use serde::de::DeserializeOwned;
use serde::Serialize;

use crate::api::{
    ClaimRequest, ConnectRequest, CreateFactoryRequest, ExitRequest, FailRequest, InvoiceRequest,
    OpenChannelRequest, PayRequest,
};
use crate::factory::params;
use crate::http::cli::{CommonSettings, Layers, Settings};
use crate::http::{parse_body, ApiCode, ApiError, Empty, Params};

/// What the first byte of an input of [`body`] chooses: a body of every route that takes one.
pub const BODIES: [&str; 9] =
    ["create_factory", "open_channel", "invoice", "pay", "claim", "fail", "connect", "exit", "empty"];

/// The first byte says for which request the others are the body.
pub fn body(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    match BODIES[usize::from(*kind) % BODIES.len()] {
        "create_factory" => create_factory(bytes),
        "open_channel" => drop(request::<OpenChannelRequest>(bytes)),
        "invoice" => drop(request::<InvoiceRequest>(bytes)),
        "pay" => {
            if let Some(pay) = request::<PayRequest>(bytes) {
                let _ = pay.invoice.parse::<Bolt11Invoice>();
            }
        }
        "claim" => drop(request::<ClaimRequest>(bytes)),
        "fail" => drop(request::<FailRequest>(bytes)),
        "connect" => {
            if let Some(connect) = request::<ConnectRequest>(bytes) {
                let _ = crate::node::parse_node_id(&connect.node_id);
            }
        }
        "exit" => drop(request::<ExitRequest>(bytes)),
        _ => drop(parse_body::<Empty>(bytes).map_err(refused)),
    }
}

/// A refusal names a field or says that it is no JSON, and is no longer than the request's own texts make it.
fn refused(error: ApiError) {
    assert_eq!(error.code, ApiCode::InvalidArgument);
    assert!(!error.message.is_empty());
    let json = serde_json::to_string(&error).unwrap();
    assert_eq!(serde_json::from_str::<ApiError>(&json).unwrap(), error);
}

fn request<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> Option<T> {
    match parse_body::<T>(bytes) {
        Ok(read) => {
            let again = parse_body::<T>(&serde_json::to_vec(&read).unwrap()).unwrap();
            assert_eq!(again, read);
            Some(read)
        }
        Err(error) => {
            refused(error);
            None
        }
    }
}

/// What comes out of an operator's wish is a set of parameters that keeps every rule, for each number of clients that
/// the factory may be left with.
fn create_factory(bytes: &[u8]) {
    let Some(wish) = request::<CreateFactoryRequest>(bytes) else { return };
    let clients = if wish.all { 20 } else { wish.clients.len() };
    for network in [Network::Regtest, Network::Bitcoin] {
        match params(network, wish.params.clone().unwrap_or_default(), clients) {
            Ok(choice) => choice.params_for(clients).unwrap().validate(clients).unwrap(),
            Err(error) => assert!(error.to_string().starts_with("params: "), "{error}"),
        }
    }
}

/// The text after `?` of `GET /v1/events`.
pub fn query(text: &str) {
    let Ok(uri) = format!("/v1/events?{text}").parse::<Uri>() else { return };
    let mut params = match Params::of(&uri) {
        Ok(params) => params,
        Err(error) => return refused(error),
    };
    let limit = params.number("limit", 100usize, 1000);
    if let Ok(limit) = limit {
        assert!(limit <= 1000);
    }
    if let Err(error) = params.finish() {
        refused(error);
    }
}

/// A config file, and after a NUL the environment, one `NAME=VALUE` a line.
pub fn settings(text: &str) {
    let (file, environment) = text.split_once('\0').unwrap_or((text, ""));
    let variables = environment.lines().filter_map(|line| line.split_once('='));
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let layers = match Layers::parse("APP", variables, "config.toml".into(), file, &[CommonSettings::KEYS]) {
        Ok(layers) => layers,
        Err(error) => return drop(error.to_string()),
    };
    let settings = match CommonSettings::resolve(CommonSettings::default(), &layers) {
        Ok(settings) => settings,
        Err(error) => return drop(error.to_string()),
    };
    // A name would be looked up.
    let literal = |text: &String| text.parse::<std::net::SocketAddr>().is_ok();
    if !settings.bitcoind_rpc.as_ref().is_none_or(literal) {
        return;
    }
    let (Ok(rpc), Ok(auth), Ok(api)) = (settings.rpc(), settings.auth(), settings.api()) else { return };
    assert!(api.expose || api.bind.ip().is_loopback());
    let mut config = crate::NodeConfig::lsp("/d".into(), settings.network(), rpc, auth);
    settings.apply(&mut config);
    if crate::http::cli::validate(&config, &settings, &CommonSettings::default()).is_ok() {
        assert!(config.fallback_feerate_sat_per_vb <= config.max_feerate_sat_per_vb);
        assert!(config.max_feerate_sat_per_vb <= 10_000 && config.poll_interval.as_millis() >= 50);
        // What is set is what a file says that is made of it.
        let written = toml::to_string(&settings).unwrap();
        let layers = Layers::parse("APP", [], "again".into(), &written, &[CommonSettings::KEYS]).unwrap();
        let again = CommonSettings::resolve(CommonSettings::default(), &layers).unwrap();
        assert_eq!(toml::to_string(&again).unwrap(), written);
    }
}
