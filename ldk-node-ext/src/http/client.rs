//! The blocking client that the command lines use.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::Serialize;

use super::{ErrorBody, HttpError, Token, API_ADDRESS_FILE};

/// Largest answer, bytes. A factory of 1000 clients has about 3 MB.
const MAX_ANSWER_BYTES: u64 = 64 << 20;
/// Time for an ordinary request; the server gives up after 60 s.
const TIMEOUT: Duration = Duration::from_secs(65);

/// A client of the process that runs in a data directory.
pub struct ApiClient {
    agent: ureq::Agent,
    address: String,
    authorization: String,
    data_dir: PathBuf,
}

impl ApiClient {
    /// Finds address and token in the data directory. Sends nothing yet.
    ///
    /// # Errors
    /// [`HttpError::NotRunning`] if there is no address file; the token's errors.
    pub fn open(data_dir: &Path) -> Result<Self, HttpError> {
        let path = data_dir.join(API_ADDRESS_FILE);
        let address = fs::read_to_string(&path).map_err(|e| HttpError::NotRunning {
            data_dir: data_dir.to_owned(),
            reason: format!("cannot read {API_ADDRESS_FILE}: {e}"),
        })?;
        let authorization = Token::read(data_dir)?.header();
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .timeout_global(Some(TIMEOUT))
            .build()
            .into();
        Ok(Self { agent, address: address.trim().to_owned(), authorization, data_dir: data_dir.to_owned() })
    }

    /// The data directory of the process.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// GET.
    ///
    /// # Errors
    /// [`HttpError::Api`] if it is refused, [`HttpError::NotRunning`] if nobody answers.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, HttpError> {
        self.get_within(path, TIMEOUT)
    }

    /// GET with a time limit of its own.
    ///
    /// # Errors
    /// As [`ApiClient::get`].
    pub fn get_within<T: DeserializeOwned>(&self, path: &str, limit: Duration) -> Result<T, HttpError> {
        let request = self
            .agent
            .get(self.url(path))
            .header("authorization", &self.authorization)
            .config()
            .timeout_global(Some(limit))
            .build();
        self.answer(path, request.call())
    }

    /// POST.
    ///
    /// # Errors
    /// As [`ApiClient::get`].
    pub fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, HttpError> {
        self.post_within(path, body, TIMEOUT)
    }

    /// POST with a time limit of its own.
    ///
    /// # Errors
    /// As [`ApiClient::get`].
    pub fn post_within<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        limit: Duration,
    ) -> Result<T, HttpError> {
        let request = self
            .agent
            .post(self.url(path))
            .header("authorization", &self.authorization)
            .config()
            .timeout_global(Some(limit))
            .build();
        self.answer(path, request.send_json(body))
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn answer<T: DeserializeOwned>(
        &self,
        path: &str,
        response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<T, HttpError> {
        let mut response = response.map_err(|e| HttpError::NotRunning {
            data_dir: self.data_dir.clone(),
            reason: format!("no answer from {}: {e}", self.address),
        })?;
        let status = response.status();
        let body = response.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_vec();
        let bad = |reason: String| HttpError::Answer { path: path.to_owned(), reason };
        let body = body.map_err(|e| bad(e.to_string()))?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|e| bad(e.to_string()));
        }
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(refusal) => Err(HttpError::Api(refusal.error)),
            Err(_) => Err(bad(format!("status {status}"))),
        }
    }
}

/// Checks an identifier that a person typed before it becomes part of a path.
///
/// # Errors
/// [`HttpError::BadSetting`] if it is not hexadecimal.
pub fn segment<'a>(name: &str, value: &'a str) -> Result<&'a str, HttpError> {
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(value);
    }
    Err(HttpError::BadSetting {
        place: "command line".into(),
        key: name.to_owned(),
        value: value.to_owned(),
        reason: "must be hexadecimal".into(),
    })
}
