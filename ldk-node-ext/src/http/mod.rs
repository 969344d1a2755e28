//! The local JSON API, and all that the two binaries' command lines share.
//!
//! A running process serves HTTP/1.1 with JSON on a loopback address ([`serve_node`]); every request
//! carries the bearer token of the data directory. The command line is a client of that API
//! ([`ApiClient`]), so it needs nothing but the data directory. Errors are [`ApiError`]s with a code
//! for programs, the field at fault and a text.
//!
//! There is no encryption: the API is for the machine it runs on. Binding it elsewhere takes a
//! setting whose name says so.

pub mod cli;
pub mod show;

mod client;
mod error;
mod extract;
mod files;
mod logging;
mod metrics;
mod routes;
mod run;
mod serve;
mod server;

pub use client::{segment, ApiClient};
pub use error::{ApiCode, ApiError, ErrorBody, HttpError};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use extract::parse_body;
pub use extract::{Body, Empty, Params, MAX_BODY_BYTES};
pub use files::{create_data_dir, write_private, AddressFiles, Token};
pub use files::{API_ADDRESS_FILE, LISTEN_ADDRESS_FILE, TOKEN_FILE};
pub use logging::init_logging;
pub use routes::{detached, done, Answer, EventPage};
pub use run::{serve_node, ApiOptions};
pub use server::{bind, secure, within, Shutdown, MAX_CONCURRENT_REQUESTS};
