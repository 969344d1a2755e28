//! Reads requests: JSON bodies, query parameters and identifiers, with errors that name the field.

use std::collections::HashMap;
use std::str::FromStr;

use axum::body::to_bytes;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{header, StatusCode, Uri};
use serde::de::DeserializeOwned;
use serde::Deserialize;

use super::{ApiCode, ApiError};

/// Largest request body, bytes. A request for a factory of 1000 clients has 150 kB.
pub const MAX_BODY_BYTES: usize = 1 << 20;

/// A request without parameters: `{}` or no body at all.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Empty {}

/// A JSON body. No body counts as `{}`; the content type is not looked at.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let announced = request
            .headers()
            .get(header::CONTENT_LENGTH)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.parse::<u64>().ok());
        if announced.is_some_and(|n| n > MAX_BODY_BYTES as u64) {
            return Err(too_large());
        }
        let bytes = to_bytes(request.into_body(), MAX_BODY_BYTES).await.map_err(|_| too_large())?;
        parse_body(&bytes).map(Self)
    }
}

fn too_large() -> ApiError {
    let text = format!("the body was cut off or is larger than {MAX_BODY_BYTES} bytes");
    ApiError::new(ApiCode::InvalidArgument, text).with_status(StatusCode::PAYLOAD_TOO_LARGE)
}

/// Reads a body that is there whole.
///
/// # Errors
/// [`ApiCode::InvalidArgument`], with the field if it is one's.
pub(crate) fn parse_body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let bytes = if bytes.iter().all(u8::is_ascii_whitespace) { b"{}".as_slice() } else { bytes };
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let path = e.path().to_string();
        let inner = e.into_inner();
        let text = inner.to_string();
        if !inner.is_data() {
            return ApiError::new(ApiCode::InvalidArgument, format!("the body is not JSON: {text}"));
        }
        ApiError { field: field_path(&path, &text), ..ApiError::new(ApiCode::InvalidArgument, text) }
    })?;
    json.end().map_err(|e| ApiError::new(ApiCode::InvalidArgument, format!("the body is not JSON: {e}")))?;
    Ok(value)
}

/// The path to the field that a serde error is about. Serde gives the parent's path for a missing
/// field, and the name in the text only.
fn field_path(path: &str, text: &str) -> Option<String> {
    let parent = if path == "." { "" } else { path };
    let missing = text.strip_prefix("missing field `").or_else(|| text.strip_prefix("unknown field `"));
    let name = missing.and_then(|rest| rest.split('`').next()).unwrap_or_default();
    match (parent, name) {
        ("", "") => None,
        ("", name) => Some(name.to_owned()),
        (parent, "") => Some(parent.to_owned()),
        (parent, name) if parent == name || parent.ends_with(&format!(".{name}")) => Some(parent.to_owned()),
        (parent, name) => Some(format!("{parent}.{name}")),
    }
}

/// The parameters after `?`.
#[derive(Debug, Default)]
pub struct Params(HashMap<String, String>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        Self::of(&parts.uri)
    }
}

impl Params {
    /// Those of an address.
    pub(crate) fn of(uri: &Uri) -> Result<Self, ApiError> {
        let query = Query::<HashMap<String, String>>::try_from_uri(uri)
            .map_err(|e| ApiError::new(ApiCode::InvalidArgument, e.body_text()))?;
        Ok(Self(query.0))
    }

    /// Takes a number out; `default` if it is not given.
    ///
    /// # Errors
    /// The parameter is not a number, or above `max`.
    pub fn number<T>(&mut self, name: &str, default: T, max: T) -> Result<T, ApiError>
    where
        T: FromStr + PartialOrd + std::fmt::Display,
    {
        let Some(text) = self.0.remove(name) else { return Ok(default) };
        match text.parse::<T>() {
            Ok(n) if n <= max => Ok(n),
            _ => Err(ApiError::invalid(name, format!("{text} is not a number from 0 to {max}"))),
        }
    }

    /// To be called last: refuses what nobody has taken.
    ///
    /// # Errors
    /// A parameter is left.
    pub fn finish(self) -> Result<(), ApiError> {
        match self.0.into_keys().min() {
            Some(name) => Err(ApiError::invalid(name.clone(), format!("unknown parameter {name}"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{CreateFactoryRequest, PayRequest};

    fn fails<T: DeserializeOwned + std::fmt::Debug>(body: &str) -> (Option<String>, String) {
        let e = parse_body::<T>(body.as_bytes()).unwrap_err();
        assert_eq!(e.code, ApiCode::InvalidArgument);
        (e.field, e.message)
    }

    #[test]
    fn errors_name_the_field() {
        let (field, text) = fails::<PayRequest>(r#"{"invoice":"x","amount_msat":"many"}"#);
        assert_eq!(field.as_deref(), Some("amount_msat"), "{text}");
        let (field, _) = fails::<PayRequest>("{}");
        assert_eq!(field.as_deref(), Some("invoice"));
        let (field, _) = fails::<PayRequest>(r#"{"invoice":"x","amount_sat":1}"#);
        assert_eq!(field.as_deref(), Some("amount_sat"));
        let (field, _) = fails::<CreateFactoryRequest>(r#"{"clients":[{"node_id":"a"}]}"#);
        assert_eq!(field.as_deref(), Some("clients[0].capacity_sat"));
        let (field, _) =
            fails::<CreateFactoryRequest>(r#"{"clients":[{"node_id":"a","capacity_sat":1,"push_sat":-1}]}"#);
        assert_eq!(field.as_deref(), Some("clients[0].push_sat"));
        let (field, _) = fails::<CreateFactoryRequest>(r#"{"params":{"arety":[8]}}"#);
        assert_eq!(field.as_deref(), Some("params.arety"));
    }

    #[test]
    fn text_that_is_no_json_is_refused_without_a_field() {
        for body in ["{", "nonsense", "{} {}", r#"{"invoice":"x"} trailing"#] {
            let (field, text) = fails::<PayRequest>(body);
            assert!(text.starts_with("the body is not JSON") || field.is_some(), "{body}: {text}");
        }
    }

    #[test]
    fn no_body_is_an_empty_request() {
        assert!(parse_body::<Empty>(b" \n").is_ok());
        let (field, _) = fails::<Empty>(r#"{"force":true}"#);
        assert_eq!(field.as_deref(), Some("force"));
    }

    #[test]
    fn parameters_have_limits_and_names() {
        let given = |name: &str, value: &str| Params(HashMap::from([(name.to_owned(), value.to_owned())]));
        assert_eq!(given("after", "7").number("after", 0u64, u64::MAX).unwrap(), 7);
        assert_eq!(Params::default().number("after", 3u64, 9).unwrap(), 3);
        let e = given("limit", "1001").number("limit", 100usize, 1000).unwrap_err();
        assert_eq!(e.field.as_deref(), Some("limit"));
        assert!(e.message.contains("1000"));
        assert_eq!(given("x", "1").finish().unwrap_err().field.as_deref(), Some("x"));
    }
}
