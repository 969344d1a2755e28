//! What can go wrong at the API: the error a caller reads, and the error of this module.
//!
//! [`ApiError`] is the JSON that every failed request answers; [`HttpError`] is what the functions of
//! this module return to the two binaries.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use axum::http::{header, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::Json;
use serde::{Deserialize, Serialize};

use crate::ErrorKind;

/// The cause of a failed request, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApiCode {
    /// The request itself is wrong; repeating it cannot help.
    InvalidArgument,
    /// No such thing.
    NotFound,
    /// The state of the node does not allow it.
    Conflict,
    /// Not now: a peer, bitcoind or this process is not able to at the moment.
    Unavailable,
    /// The wallet or the channels do not hold the amount.
    InsufficientFunds,
    /// The bearer token is missing or wrong.
    Unauthorized,
    /// A fault of this software or of its disk.
    Internal,
}

impl ApiCode {
    /// The HTTP status that goes with the code.
    pub fn status(self) -> StatusCode {
        match self {
            Self::InvalidArgument => StatusCode::BAD_REQUEST,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Conflict => StatusCode::CONFLICT,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::InsufficientFunds => StatusCode::PAYMENT_REQUIRED,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<ErrorKind> for ApiCode {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::InvalidArgument => Self::InvalidArgument,
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::Conflict => Self::Conflict,
            ErrorKind::Unavailable => Self::Unavailable,
            ErrorKind::InsufficientFunds => Self::InsufficientFunds,
            ErrorKind::Internal => Self::Internal,
        }
    }
}

/// The error of one request: `{"error":{"code","field","message"}}` on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// For programs.
    pub code: ApiCode,
    /// The field of the request that is wrong, as a path (`clients[2].capacity_sat`).
    pub field: Option<String>,
    /// For people.
    pub message: String,
    /// HTTP status where it differs from that of the code (405, 413).
    #[serde(skip)]
    pub status: Option<u16>,
}

/// The envelope of an [`ApiError`].
#[derive(Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ApiError,
}

impl ApiError {
    /// An error without a field.
    pub fn new(code: ApiCode, message: impl Into<String>) -> Self {
        Self { code, field: None, message: message.into(), status: None }
    }

    /// A wrong value in one field of the request.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code: ApiCode::InvalidArgument,
            field: Some(field.into()),
            message: message.into(),
            status: None,
        }
    }

    /// Field and message in one line.
    pub fn text(&self) -> String {
        match &self.field {
            Some(field) => format!("{field}: {}", self.message),
            None => self.message.clone(),
        }
    }

    /// Answers with another status than the code's own.
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = Some(status.as_u16());
        self
    }
}

impl From<&crate::Error> for ApiError {
    fn from(error: &crate::Error) -> Self {
        let text = error.to_string();
        // The field has a place of its own here.
        let message = error.field().and_then(|f| text.strip_prefix(f)?.strip_prefix(": ")).unwrap_or(&text);
        Self {
            code: ApiCode::from(error.kind()),
            field: error.field().map(str::to_owned),
            message: message.to_owned(),
            status: None,
        }
    }
}

impl From<crate::Error> for ApiError {
    fn from(error: crate::Error) -> Self {
        Self::from(&error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status.and_then(|s| StatusCode::from_u16(s).ok()).unwrap_or(self.code.status());
        match self.code {
            ApiCode::Internal => tracing::error!(error = %self.message, "API request failed"),
            _ => {
                tracing::debug!(code = ?self.code, field = ?self.field, error = %self.message, "API request refused")
            }
        }
        let unauthorized = self.code == ApiCode::Unauthorized;
        let mut response = (status, Json(ErrorBody { error: self })).into_response();
        if unauthorized {
            let challenge = axum::http::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// Why a binary could not start, or a command of its command line failed.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// A file of the data directory cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The token file is open to others.
    #[error("{} has mode {mode:o}; others must not read it: set it to 600", path.display())]
    TokenMode {
        /// The token file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The token file does not hold a token.
    #[error("{} does not hold {} hexadecimal digits; delete it to get a new token", path.display(), super::files::TOKEN_DIGITS)]
    TokenFormat {
        /// The token file.
        path: PathBuf,
    },
    /// The API would be reachable from other machines.
    #[error("api is {address}, which other machines can reach, and there is no encryption: use a loopback address, or set dangerously_expose_api")]
    NotLoopback {
        /// The address asked for.
        address: SocketAddr,
    },
    /// The API's address cannot be used.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// A setting that does not exist.
    #[error("{place}: unknown setting {key}; known are: {known}")]
    UnknownSetting {
        /// Config file or environment.
        place: String,
        /// The setting's name there.
        key: String,
        /// All names.
        known: String,
    },
    /// A setting with a wrong value.
    #[error("{place}: {key} = {value}: {reason}")]
    BadSetting {
        /// Config file, environment or "settings" once they are merged.
        place: String,
        /// The setting's name there.
        key: String,
        /// Its value.
        value: String,
        /// What is wrong with it, with the limit.
        reason: String,
    },
    /// A setting that must be given and is not.
    #[error("{key} is not set: {hint}")]
    MissingSetting {
        /// The setting.
        key: &'static str,
        /// How to set it.
        hint: String,
    },
    /// The config file is not TOML.
    #[error("{} is not valid TOML: {reason}", path.display())]
    ConfigFile {
        /// The file.
        path: PathBuf,
        /// The parser's reason.
        reason: String,
    },
    /// No process answers for this data directory.
    #[error("nothing runs in {}: {reason}", data_dir.display())]
    NotRunning {
        /// The data directory.
        data_dir: PathBuf,
        /// What was seen.
        reason: String,
    },
    /// The answer of the process cannot be understood.
    #[error("unexpected answer from {path}: {reason}")]
    Answer {
        /// Path of the request.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The request was refused.
    #[error("{}", .0.text())]
    Api(#[from] ApiError),
    /// bitcoind cannot be used at the start.
    #[error("bitcoind_rpc = {rpc}: {source}")]
    Bitcoind {
        /// Where it was looked for.
        rpc: SocketAddr,
        /// Its answer, or the lack of one.
        source: crate::Error,
    },
    /// The node refused to start or ended by a fault.
    #[error(transparent)]
    Node(#[from] crate::Error),
    /// The node ended by itself.
    #[error("the node ended by itself: {}", .reason.as_deref().unwrap_or("the log says why"))]
    NodeEnded {
        /// Why, as far as it is known.
        reason: Option<String>,
    },
    /// The outcome was printed in full; only the exit code is left to be told.
    #[error("exit code {code}")]
    Told {
        /// The exit code.
        code: u8,
    },
    /// What was asked for was tried, and failed.
    #[error("{0}")]
    Outcome(String),
    /// What was asked for goes on, but the command does not wait longer.
    #[error("{what} is still {state} after {secs} s; it goes on")]
    StillWaiting {
        /// What was waited for.
        what: String,
        /// Where it stands.
        state: String,
        /// How long.
        secs: u64,
    },
    /// The runtime, a signal handler or the terminal failed.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

impl HttpError {
    /// For `map_err`: an error at a file.
    pub fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }

    /// The exit code of a command that ends with this error: 3 if only the waiting ended, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::StillWaiting { .. } => 3,
            Self::Told { code } => *code,
            _ => 1,
        }
    }

    /// Whether there is nothing to print: all was said, or the reader of stdout has gone.
    pub fn is_silent(&self) -> bool {
        match self {
            Self::Told { .. } => true,
            Self::System { source, .. } => source.kind() == io::ErrorKind::BrokenPipe,
            _ => false,
        }
    }

    /// The error as the API would say it, for `--json`.
    pub fn to_api_error(&self) -> ApiError {
        let message = self.to_string();
        match self {
            Self::Api(e) => e.clone(),
            Self::Node(e) => e.into(),
            Self::Bitcoind { source, .. } => {
                ApiError { field: Some("bitcoind_rpc".into()), ..ApiError::from(source) }
            }
            Self::UnknownSetting { key, .. } | Self::BadSetting { key, .. } => {
                ApiError::invalid(key.clone(), message)
            }
            Self::MissingSetting { key, .. } => ApiError::invalid(*key, message),
            Self::NotLoopback { .. } => ApiError::invalid("api", message),
            Self::ConfigFile { .. } => ApiError::invalid("config", message),
            Self::NotRunning { .. } | Self::StillWaiting { .. } => {
                ApiError::new(ApiCode::Unavailable, message)
            }
            Self::Outcome(_) | Self::Bind { .. } => ApiError::new(ApiCode::Conflict, message),
            Self::File { .. }
            | Self::TokenMode { .. }
            | Self::TokenFormat { .. }
            | Self::Answer { .. }
            | Self::NodeEnded { .. }
            | Self::Told { .. }
            | Self::System { .. } => ApiError::new(ApiCode::Internal, message),
        }
    }
}
