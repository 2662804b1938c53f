//! What handlers take from a request, with errors as the API gives them.

use crate::{engine::Engine, fault::Fault};
use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request, State, rejection::BytesRejection},
    http::{Method, StatusCode, header, request::Parts},
    middleware::Next,
    response::Response,
};
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use std::{
    fmt::Display,
    str::FromStr,
    sync::{Arc, PoisonError},
};
use tenet_api::rest::WaitQuery;

/// What all handlers share.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) engine: Arc<Engine>,
    /// Hash of the admin token: comparing hashes tells nothing by its duration.
    pub(crate) admin: [u8; 32],
    pub(crate) grpc_port: u16,
}

/// A JSON body.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, state: &S) -> Result<Self, Fault> {
        let kind = request.headers().get(header::CONTENT_TYPE).map(|v| v.to_str().unwrap_or("?").to_owned());
        let bytes = Bytes::from_request(request, state).await.map_err(too_large)?;
        if let Some(kind) = kind {
            let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
            if essence != "application/json" && !essence.ends_with("+json") {
                let message = format!("content type `{kind}` is not understood");
                let hint = "send JSON with `content-type: application/json`";
                return Err(Fault::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "bad-request", message, hint));
            }
        }
        // A request without a body asks for the defaults.
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(text).map(Self).map_err(|e| {
            let message = format!("the body is not what is expected here: {e}");
            Fault::bad_request(message, "see /openapi.json for the form of this request")
        })
    }
}

fn too_large(rejection: BytesRejection) -> Fault {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let message = "the body is too large: 1 MiB is the limit, 16 MiB for /v1/changes";
        Fault::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", message, "split the change")
    } else {
        Fault::bad_request("the body ended early", "send it again")
    }
}

/// How a changing request wants to be treated.
pub(crate) struct Wish {
    pub(crate) wait: WaitQuery,
    pub(crate) if_match: Option<u64>,
}

impl<S: Send + Sync> FromRequestParts<S> for Wish {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        let Params(wait) = Params::from_request_parts(parts, state).await?;
        let if_match = match parts.headers.get(header::IF_MATCH) {
            None => None,
            Some(value) => {
                let text = value.to_str().unwrap_or_default().trim_matches('"');
                let wrong = || {
                    Fault::bad_request(
                        "If-Match is no revision",
                        "give the site's revision, as in If-Match: 42",
                    )
                };
                Some(text.parse().map_err(|_| wrong())?)
            }
        };
        Ok(Self { wait, if_match })
    }
}

/// Query parameters.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(Fault::bad_request(
                rejection.body_text(),
                "see /openapi.json for the parameters of this request",
            )),
        }
    }
}

/// A name made of the path's parts.
pub(crate) struct Named<T>(pub(crate) T);

impl<T: FromStr<Err: Display>, S: Send + Sync> FromRequestParts<S> for Named<T> {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        let wrong = |message: String| Fault::bad_request(message, "check the name in the path");
        let Path(parts) = Path::<Vec<(String, String)>>::from_request_parts(parts, state)
            .await
            .map_err(|e| wrong(e.body_text()))?;
        let text = parts.into_iter().map(|(_, part)| part).collect::<Vec<_>>().join("/");
        text.parse().map(Self).map_err(|e: T::Err| wrong(e.to_string()))
    }
}

/// Lets only holders of the admin token in.
pub(crate) async fn authorize(
    State(app): State<App>,
    request: Request,
    next: Next,
) -> Result<Response, Fault> {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let token =
        given.and_then(|v| v.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    match token {
        Some((_, token)) if <[u8; 32]>::from(Sha256::digest(token.trim().as_bytes())) == app.admin => {
            Ok(next.run(request).await)
        }
        Some(_) | None => {
            let message =
                if given.is_some() { "the token is not the controller's" } else { "a token is needed" };
            let hint = "send `authorization: Bearer TOKEN` with the token of <state-dir>/admin.json";
            Err(Fault::new(StatusCode::UNAUTHORIZED, "unauthorized", message, hint))
        }
    }
}

/// A method's name for the counters: anybody may send methods of their own making, each of which would stay for ever.
fn method(method: &Method) -> &str {
    let known = [
        Method::GET,
        Method::POST,
        Method::DELETE,
        Method::PUT,
        Method::PATCH,
        Method::HEAD,
        Method::OPTIONS,
    ];
    if known.contains(method) { method.as_str() } else { "other" }
}

/// Counts requests by route and status.
pub(crate) async fn count(State(app): State<App>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<axum::extract::MatchedPath>().map_or("other", |p| p.as_str());
    let route = format!("{} {path}", method(request.method()));
    let response = next.run(request).await;
    let mut requests = app.engine.figures.requests.lock().unwrap_or_else(PoisonError::into_inner);
    *requests.entry((route, response.status().as_u16())).or_default() += 1;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_of_somebody_s_own_making_are_one() {
        assert_eq!(method(&Method::GET), "GET");
        assert_eq!(method(&Method::from_bytes(b"X1").unwrap()), "other");
    }
}
