//! JSON over HTTP on loopback: the two binaries' local API and bitcoind's JSON-RPC.

use std::time::Duration;

use anyhow::{anyhow, bail, Context, Result};
use serde::de::DeserializeOwned;
use serde_json::{json, Value};

/// The largest answer that is read: a regtest block with a whole factory's tree, as JSON.
const MAX_ANSWER: u64 = 64 * 1024 * 1024;

fn agent(limit: Duration) -> ureq::Agent {
    // No proxy: a machine's proxy settings are no business of calls to loopback.
    ureq::Agent::config_builder()
        .timeout_global(Some(limit))
        .http_status_as_error(false)
        .proxy(None)
        .build()
        .into()
}

/// The local API of one running `lsp-server` or `client-app`.
#[derive(Clone, Debug)]
pub struct Api {
    agent: ureq::Agent,
    base: String,
    authorization: String,
}

/// An answer of the API that is not a success.
#[derive(Debug)]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// `error.code` of the answer, for example `not_found`.
    pub code: String,
    /// `error.field`: the field of the request that is to blame.
    pub field: Option<String>,
    /// `error.message`.
    pub message: String,
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} {} ({}): {}",
            self.status,
            self.code,
            self.field.as_deref().unwrap_or("-"),
            self.message
        )
    }
}

impl std::error::Error for ApiError {}

impl Api {
    /// An API at `address` (`127.0.0.1:PORT`) with its bearer token. A call may last `limit`.
    pub fn new(address: &str, token: &str, limit: Duration) -> Self {
        Self {
            agent: agent(limit),
            base: format!("http://{address}"),
            authorization: format!("Bearer {token}"),
        }
    }

    /// `GET path`.
    ///
    /// # Errors
    /// [`ApiError`] for an answer that is not a success, anything else for a broken connection or answer.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let request = self.agent.get(format!("{}{path}", self.base));
        let answer = request.header("Authorization", &self.authorization).call();
        parse("GET", path, answer)
    }

    /// `GET path` of something that is text and not JSON.
    ///
    /// # Errors
    /// If the connection or the answer is broken, or it is not a success.
    pub fn text(&self, path: &str) -> Result<String> {
        let request = self.agent.get(format!("{}{path}", self.base));
        let answer = request.header("Authorization", &self.authorization).call();
        let mut answer = answer.with_context(|| format!("GET {path}"))?;
        let text = answer.body_mut().with_config().limit(MAX_ANSWER).read_to_string()?;
        if !answer.status().is_success() {
            bail!("GET {path}: {} {text}", answer.status());
        }
        Ok(text)
    }

    /// `POST path` with a JSON body.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T> {
        let request = self.agent.post(format!("{}{path}", self.base));
        let answer = request.header("Authorization", &self.authorization).send_json(body);
        parse("POST", path, answer)
    }
}

fn parse<T: DeserializeOwned>(
    method: &str,
    path: &str,
    answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<T> {
    let mut answer = answer.with_context(|| format!("{method} {path}"))?;
    let status = answer.status().as_u16();
    let text = answer.body_mut().with_config().limit(MAX_ANSWER).read_to_string()?;
    if !(200..300).contains(&status) {
        let error: Value = serde_json::from_str(&text).unwrap_or_default();
        let field = |name: &str| error["error"][name].as_str().map(str::to_owned);
        return Err(anyhow!(ApiError {
            status,
            code: field("code").unwrap_or_else(|| "none".into()),
            field: field("field"),
            message: field("message").unwrap_or(text),
        })
        .context(format!("{method} {path}")));
    }
    serde_json::from_str(&text).with_context(|| format!("answer to {method} {path}: {text}"))
}

/// bitcoind's JSON-RPC.
#[derive(Clone, Debug)]
pub struct Rpc {
    agent: ureq::Agent,
    url: String,
    authorization: String,
}

impl Rpc {
    /// The RPC server at `address`, with user and password.
    pub fn new(address: &str, user: &str, password: &str) -> Self {
        Self {
            agent: agent(Duration::from_secs(120)),
            url: format!("http://{address}/"),
            authorization: format!("Basic {}", base64(format!("{user}:{password}").as_bytes())),
        }
    }

    /// Calls a method of the node.
    ///
    /// # Errors
    /// If the node does not answer, or answers with an error: its code and text.
    pub fn call<T: DeserializeOwned>(&self, method: &str, params: Value) -> Result<T> {
        self.send("", method, params)
    }

    /// Calls a method of one of the node's wallets.
    ///
    /// # Errors
    /// As [`Rpc::call`].
    pub fn wallet<T: DeserializeOwned>(&self, wallet: &str, method: &str, params: Value) -> Result<T> {
        self.send(&format!("wallet/{wallet}"), method, params)
    }

    fn send<T: DeserializeOwned>(&self, path: &str, method: &str, params: Value) -> Result<T> {
        let body = json!({ "jsonrpc": "1.0", "id": 0, "method": method, "params": params });
        let mut answer = self
            .agent
            .post(format!("{}{path}", self.url))
            .header("Authorization", &self.authorization)
            .send_json(&body)
            .with_context(|| format!("bitcoind {method}"))?;
        let text = answer.body_mut().with_config().limit(MAX_ANSWER).read_to_string()?;
        let mut value: Value =
            serde_json::from_str(&text).with_context(|| format!("bitcoind {method}: {text}"))?;
        if !value["error"].is_null() {
            let (code, message) = (&value["error"]["code"], &value["error"]["message"]);
            bail!("bitcoind {method}: {} ({code})", message.as_str().unwrap_or_default());
        }
        serde_json::from_value(value["result"].take()).with_context(|| format!("bitcoind {method}: {text}"))
    }
}

/// Standard base64 with padding (RFC 4648 section 4), for HTTP basic authentication.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group =
            chunk.iter().fold(0u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for position in 0..4 {
            let index = (group >> (18 - 6 * position)) & 63;
            let letter = ALPHABET.get(index as usize).copied().unwrap_or(b'=');
            text.push(if position > chunk.len() { '=' } else { char::from(letter) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    /// RFC 4648 section 10.
    #[test]
    fn base64_vectors() {
        let vectors = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (plain, coded) in vectors {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
