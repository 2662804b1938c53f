//! Errors as REST answers them.

use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use tenet_api::rest::{ApiError, Problem};
use tenet_model::{Key, Why};
use tenet_store::SiteError;

/// An answer outside 2xx.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) status: StatusCode,
    pub(crate) error: ApiError,
}

impl Fault {
    pub(crate) fn new(
        status: StatusCode,
        code: &str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        let error =
            ApiError { code: code.into(), message: message.into(), hint: hint.into(), problems: Vec::new() };
        Self { status, error }
    }

    pub(crate) fn bad_request(message: impl Into<String>, hint: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", message, hint)
    }

    pub(crate) fn not_found(key: &Key) -> Self {
        let list = match key {
            Key::Tenant(_) => "GET /v1/tenants",
            Key::Network(_) => "`tenet network list`",
            Key::Subnet(_) => "`tenet subnet list`",
            Key::Vm(_) | Key::Port(_) => "`tenet vm list`",
            Key::Host(_) => "`tenet host list`",
            Key::Route(..) => "`tenet route list`",
            Key::Migration(_) => "`tenet status`",
            Key::Site => "`tenet site show`",
        };
        let hint = format!("check the name: {list} shows what there is");
        Self::new(StatusCode::NOT_FOUND, "not-found", format!("{} does not exist", key.title()), hint)
    }

    /// Something else of that name is there.
    pub(crate) fn exists(key: &Key) -> Self {
        let message = format!("{} exists already and is not as asked for", key.title());
        let hint = "choose another name, or alter what is there with `tenet apply`, `tenet network set` or `tenet host set`";
        Self::new(StatusCode::CONFLICT, "exists", message, hint)
    }

    pub(crate) fn lost_race(asked: u64, now: u64) -> Self {
        let message =
            format!("lost race: the change was made for revision {asked}, but the site is at {now}");
        let hint = "somebody else changed the site: look again and repeat the change if it still makes sense";
        Self::new(StatusCode::CONFLICT, "lost-race", message, hint)
    }

    pub(crate) fn conflict(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message, hint)
    }

    pub(crate) fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        tracing::error!(error = %text, "a request failed inside the controller");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", text, "look at the controller's log")
    }

    /// A change that the model refuses.
    pub(crate) fn problems(problems: &[tenet_model::Problem]) -> Self {
        let conflict = |p: &tenet_model::Problem| {
            matches!(p.why, Why::InUse { .. } | Why::AlreadyMigrating { .. } | Why::Migrating { .. })
        };
        let (status, code) = if !problems.is_empty() && problems.iter().all(conflict) {
            (StatusCode::CONFLICT, "conflict")
        } else {
            (StatusCode::UNPROCESSABLE_ENTITY, "invalid")
        };
        let problems: Vec<Problem> = problems
            .iter()
            .map(|p| {
                // The model's texts end with what to do, after a colon.
                let text = p.to_string();
                let (message, hint) = text.rsplit_once(": ").map_or((text.as_str(), ""), |(m, h)| (m, h));
                Problem {
                    code: code.into(),
                    object: p.about.to_string(),
                    message: message.to_owned(),
                    hint: hint.to_owned(),
                }
            })
            .collect();
        let (message, hint) = match problems.as_slice() {
            [one] => (one.message.clone(), one.hint.clone()),
            many => {
                (format!("the change is refused for {} reasons", many.len()), "see each of them".to_owned())
            }
        };
        Self { status, error: ApiError { code: code.into(), message, hint, problems } }
    }
}

impl From<SiteError> for Fault {
    fn from(error: SiteError) -> Self {
        match error {
            SiteError::Lost { seen } => Self::lost_race(seen, seen),
            SiteError::Store(_) | SiteError::Unreadable { .. } | SiteError::First(_) => {
                Self::internal(&error)
            }
        }
    }
}

impl From<tenet_store::StoreError> for Fault {
    fn from(error: tenet_store::StoreError) -> Self {
        Self::internal(&error)
    }
}

impl From<crate::pki::PkiError> for Fault {
    fn from(error: crate::pki::PkiError) -> Self {
        match error {
            crate::pki::PkiError::Request(_) => {
                Self::bad_request(error.to_string(), "make the request anew with `tenet agent --join`")
            }
            other => Self::internal(&other),
        }
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.error)).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let value = header::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
        }
        response
    }
}
