//! The guard around the routes: who may ask, how much, how many at once and for how long.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{header, Method, StatusCode, Uri};
use axum::middleware::{from_fn, Next};
use axum::response::{IntoResponse, Response};
use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::{watch, Semaphore};

use super::serve::Trusted;
use super::{ApiCode, ApiError, HttpError, Token};

/// Requests served at the same time; one more is answered with 503.
pub const MAX_CONCURRENT_REQUESTS: usize = 256;

/// Opens the API's socket.
///
/// # Errors
/// [`HttpError::NotLoopback`] for an address that other machines can reach, unless `expose`;
/// [`HttpError::Bind`].
pub async fn bind(address: SocketAddr, expose: bool) -> Result<TcpListener, HttpError> {
    if !address.ip().is_loopback() {
        if !expose {
            return Err(HttpError::NotLoopback { address });
        }
        tracing::warn!(%address, "the API is open to other machines, and not encrypted");
    }
    TcpListener::bind(address).await.map_err(|source| HttpError::Bind { address, source })
}

/// Ends requests on these routes after `limit`; what they started goes on.
pub fn within(limit: Duration, routes: Router) -> Router {
    routes.route_layer(from_fn(move |request: Request, next: Next| async move {
        match tokio::time::timeout(limit, next.run(request)).await {
            Ok(response) => response,
            Err(_) => {
                let text = format!("no answer within {} s; what was asked for may go on", limit.as_secs());
                ApiError::new(ApiCode::Unavailable, text).into_response()
            }
        }
    }))
}

/// Puts token check, concurrency limit and JSON errors for unknown paths and methods around routes.
pub fn secure(routes: Router, token: Token) -> Router {
    let permits = Arc::new(Semaphore::new(MAX_CONCURRENT_REQUESTS));
    let guard = from_fn(move |request: Request, next: Next| {
        let token = token.clone();
        let permits = Arc::clone(&permits);
        async move {
            let header = request.headers().get(header::AUTHORIZATION);
            if !header.is_some_and(|h| token.matches(h.as_bytes())) {
                return unauthorized();
            }
            if let Some(trusted) = request.extensions().get::<Trusted>() {
                trusted.set();
            }
            let Ok(_permit) = permits.try_acquire() else {
                let text = format!("more than {MAX_CONCURRENT_REQUESTS} requests at once");
                return ApiError::new(ApiCode::Unavailable, text).into_response();
            };
            next.run(request).await
        }
    });
    routes.fallback(unknown_path).method_not_allowed_fallback(wrong_method).layer(guard)
}

fn unauthorized() -> Response {
    let text = "the header authorization must be \"Bearer \" and the content of api-token";
    ApiError::new(ApiCode::Unauthorized, text).into_response()
}

async fn unknown_path(uri: Uri) -> ApiError {
    ApiError::new(ApiCode::NotFound, format!("there is no {}", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let text = format!("{} does not take {method}", uri.path());
    ApiError::new(ApiCode::InvalidArgument, text).with_status(StatusCode::METHOD_NOT_ALLOWED)
}

/// Asks a running process to end; cheap to clone.
#[derive(Clone, Debug)]
pub struct Shutdown(Arc<watch::Sender<bool>>);

impl Default for Shutdown {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Shutdown {
    /// Asks.
    pub fn request(&self) {
        self.0.send_replace(true);
    }

    /// Resolves once somebody asked.
    pub async fn requested(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.0.subscribe().wait_for(|asked| *asked).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::InvoiceRequest;
    use crate::http::files::write_private;
    use crate::http::serve::{serve, MAX_CONNECTIONS};
    use crate::http::{ApiClient, Body, Empty, ErrorBody, API_ADDRESS_FILE, MAX_BODY_BYTES};
    use axum::routing::{get, post};
    use axum::Json;
    use serde_json::{json, Value};

    /// Serves a few routes with the real guard, and gives the data directory and base address.
    async fn served() -> (tempfile::TempDir, SocketAddr) {
        let dir = tempfile::tempdir().unwrap();
        let token = Token::read_or_create(dir.path()).unwrap();
        let quick = Router::new()
            .route("/v1/thing", get(|| async { Json(json!({"a": 1})) }))
            .route("/v1/echo", post(|Body(r): Body<InvoiceRequest>| async { Json(r) }))
            .route("/v1/nothing", post(|Body(_): Body<Empty>| async { Json(json!({})) }));
        let sleeper = get(|| async { tokio::time::sleep(Duration::from_secs(30)).await });
        let slow = within(Duration::from_millis(50), Router::new().route("/v1/slow", sleeper.clone()));
        let hang = Router::new().route("/v1/hang", sleeper);
        let app = secure(quick.merge(slow).merge(hang), token);
        let listener = bind("127.0.0.1:0".parse().unwrap(), false).await.unwrap();
        let address = listener.local_addr().unwrap();
        write_private(&dir.path().join(API_ADDRESS_FILE), &format!("{address}\n")).unwrap();
        tokio::spawn(serve(listener, app, Shutdown::default()));
        (dir, address)
    }

    /// One request by hand: status and JSON.
    async fn raw(
        address: SocketAddr,
        method: &'static str,
        path: &'static str,
        auth: Option<String>,
        body: String,
    ) -> (u16, Value) {
        tokio::task::spawn_blocking(move || {
            let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
            let mut request =
                axum::http::Request::builder().method(method).uri(format!("http://{address}{path}"));
            if let Some(auth) = auth {
                request = request.header("authorization", auth);
            }
            let mut response = agent.run(request.body(body).unwrap()).unwrap();
            (response.status().as_u16(), response.body_mut().read_json().unwrap())
        })
        .await
        .unwrap()
    }

    fn code(body: &Value) -> &str {
        body["error"]["code"].as_str().unwrap()
    }

    #[tokio::test]
    async fn without_the_token_nothing_is_told() {
        let (dir, at) = served().await;
        let good = Token::read(dir.path()).unwrap().header();
        let wrong = format!("Bearer {}", "0".repeat(64));
        for auth in [None, Some(wrong), Some("Basic abc".into()), Some(good.to_lowercase())] {
            for path in ["/v1/thing", "/v1/unknown"] {
                let (status, body) = raw(at, "GET", path, auth.clone(), String::new()).await;
                assert_eq!((status, code(&body)), (401, "unauthorized"), "{path} {auth:?}");
            }
        }
        let (status, body) = raw(at, "GET", "/v1/thing", Some(good), String::new()).await;
        assert_eq!((status, body), (200, json!({"a": 1})));
    }

    #[tokio::test]
    async fn every_failure_is_a_json_error() {
        let (dir, at) = served().await;
        let auth = Token::read(dir.path()).unwrap().header();
        let cases = [
            ("GET", "/v1/unknown", "", 404, "not_found", Value::Null),
            ("POST", "/v1/thing", "", 405, "invalid_argument", Value::Null),
            ("POST", "/v1/echo", "{", 400, "invalid_argument", Value::Null),
            ("POST", "/v1/echo", r#"{"amount_msat":-1}"#, 400, "invalid_argument", json!("amount_msat")),
            ("POST", "/v1/nothing", r#"{"x":1}"#, 400, "invalid_argument", json!("x")),
            ("GET", "/v1/slow", "", 503, "unavailable", Value::Null),
        ];
        for (method, path, body, status, want, field) in cases {
            let (got, body) = raw(at, method, path, Some(auth.clone()), body.to_owned()).await;
            assert_eq!((got, code(&body)), (status, want), "{method} {path}");
            assert_eq!(body["error"]["field"], field, "{method} {path}");
        }
        // The head alone: the answer comes before the body, and a client that is still writing it would
        // see a broken pipe instead.
        let head = format!(
            "POST /v1/echo HTTP/1.1\r\nhost: x\r\nauthorization: {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n",
            auth,
            MAX_BODY_BYTES + 1
        );
        let mut stream = tokio::net::TcpStream::connect(at).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer);
        tokio::time::timeout(Duration::from_secs(10), read).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(answer.contains(r#""code":"invalid_argument""#), "{answer}");
    }

    #[tokio::test]
    async fn too_many_at_once_are_refused() {
        let (dir, at) = served().await;
        let auth = Some(Token::read(dir.path()).unwrap().header());
        let request =
            format!("GET /v1/hang HTTP/1.1\r\nhost: x\r\nauthorization: {}\r\n\r\n", auth.clone().unwrap());
        let mut open = Vec::new();
        for _ in 0..MAX_CONCURRENT_REQUESTS {
            let mut stream = tokio::net::TcpStream::connect(at).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
            open.push(stream);
        }
        let mut last = (0, Value::Null);
        for _ in 0..100 {
            last = raw(at, "GET", "/v1/thing", auth.clone(), String::new()).await;
            if last.0 == 503 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!((last.0, code(&last.1)), (503, "unavailable"));
        drop(open);
    }

    /// More connections than there may be, some of which began a request: who has the token is served.
    #[tokio::test]
    async fn connections_without_the_token_make_room() {
        let (dir, at) = served().await;
        let auth = Some(Token::read(dir.path()).unwrap().header());
        let mut idle = Vec::new();
        for n in 0..MAX_CONNECTIONS + 50 {
            let mut stream = tokio::net::TcpStream::connect(at).await.unwrap();
            if n % 2 == 0 {
                let begun = b"GET /v1/thing HTTP/1.1\r\nhost: x\r\nx-slow: ";
                tokio::io::AsyncWriteExt::write_all(&mut stream, begun).await.unwrap();
            }
            idle.push(stream);
        }
        let (status, _) = raw(at, "GET", "/v1/thing", auth, String::new()).await;
        assert_eq!(status, 200);
        let mut byte = [0];
        let read = tokio::io::AsyncReadExt::read(&mut idle[0], &mut byte);
        let read = tokio::time::timeout(Duration::from_secs(10), read).await.unwrap();
        assert!(matches!(read, Ok(0) | Err(_)), "the oldest is closed");
    }

    #[tokio::test]
    async fn the_client_reads_answers_and_errors() {
        let (dir, _) = served().await;
        let path = dir.path().to_owned();
        tokio::task::spawn_blocking(move || {
            let client = ApiClient::open(&path).unwrap();
            let sent = InvoiceRequest { amount_msat: Some(5), ..Default::default() };
            let got: InvoiceRequest = client.post("/v1/echo", &sent).unwrap();
            assert_eq!(got, sent);
            let e = client.get::<Value>("/v1/unknown").unwrap_err();
            assert!(matches!(&e, HttpError::Api(e) if e.code == ApiCode::NotFound), "{e:?}");
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn only_loopback_unless_told() {
        let any: SocketAddr = "0.0.0.0:0".parse().unwrap();
        assert!(matches!(bind(any, false).await, Err(HttpError::NotLoopback { .. })));
        assert!(bind(any, true).await.is_ok());
    }

    #[test]
    fn the_error_envelope_has_code_field_and_message() {
        let body = ErrorBody { error: ApiError::invalid("capacity_sat", "must be at least 20000") };
        let want = json!({"error": {"code": "invalid_argument", "field": "capacity_sat", "message": "must be at least 20000"}});
        assert_eq!(serde_json::to_value(&body).unwrap(), want);
        let node = ApiError::from(crate::Error::InsufficientFunds { needed_sat: 2, available_sat: 1 });
        assert_eq!((node.code.status().as_u16(), node.field), (402, None));
    }
}
