//! An answer that is not what was asked for, in Stripe's form.

use http::StatusCode;
use serde_json::{Value, json};

#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    pub status: StatusCode,
    /// `invalid_request_error`, `card_error`, `idempotency_error`, `api_error`.
    pub kind: &'static str,
    pub code: Option<&'static str>,
    pub decline_code: Option<Box<str>>,
    pub param: Option<Box<str>>,
    pub message: Box<str>,
    /// The payment intent of a card error, whole.
    pub payment_intent: Option<Box<Value>>,
}

impl Failure {
    fn new(status: StatusCode, kind: &'static str, message: String) -> Failure {
        let message = message.into_boxed_str();
        Failure { status, kind, code: None, decline_code: None, param: None, message, payment_intent: None }
    }

    fn with_code(mut self, code: &'static str) -> Failure {
        self.code = Some(code);
        self
    }

    fn with_param(mut self, param: &str) -> Failure {
        self.param = Some(param.into());
        self
    }

    /// A parameter's value is not acceptable.
    pub fn invalid(param: &str, message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::BAD_REQUEST, "invalid_request_error", message.into()).with_param(param)
    }

    /// The request contradicts the state of an object.
    pub fn state(code: &'static str, message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::BAD_REQUEST, "invalid_request_error", message.into()).with_code(code)
    }

    pub fn missing(param: &str) -> Failure {
        Failure::invalid(param, format!("Missing required param: {param}.")).with_code("parameter_missing")
    }

    pub fn unknown(param: &str) -> Failure {
        Failure::invalid(param, format!("Received unknown parameter: {param}")).with_code("parameter_unknown")
    }

    /// `resource_missing`: 404 when the path names it, 400 when a parameter does.
    pub fn no_such(what: &str, id: &str, param: &str, similar_in: Option<&str>) -> Failure {
        let hint = similar_in.map_or(String::new(), |mode| {
            let key = if mode == "live" { "test" } else { "live" };
            format!("; a similar object exists in {mode} mode, but a {key} mode key was used to make this request.")
        });
        let status = if param == "id" { StatusCode::NOT_FOUND } else { StatusCode::BAD_REQUEST };
        Failure::new(status, "invalid_request_error", format!("No such {what}: '{id}'{hint}"))
            .with_code("resource_missing")
            .with_param(param)
    }

    pub fn no_route(method: &str, path: &str) -> Failure {
        let message = format!("Unrecognized request URL ({method}: {path}).");
        Failure::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
    }

    pub fn unauthorized(message: &str) -> Failure {
        Failure::new(StatusCode::UNAUTHORIZED, "invalid_request_error", message.to_owned())
    }

    pub fn card(code: &'static str, decline_code: Option<&str>, message: &str) -> Failure {
        let mut failure = Failure::new(StatusCode::PAYMENT_REQUIRED, "card_error", message.to_owned()).with_code(code);
        failure.decline_code = decline_code.map(Box::from);
        failure
    }

    pub fn idempotency(key: &str) -> Failure {
        let message = format!(
            "Keys for idempotent requests can only be used with the same parameters they were first used with. \
             Try using a key other than '{key}' if you meant to execute a different request."
        );
        Failure::new(StatusCode::BAD_REQUEST, "idempotency_error", message)
    }

    pub fn rate_limited() -> Failure {
        let message = "Request rate limit exceeded.".to_owned();
        Failure::new(StatusCode::TOO_MANY_REQUESTS, "invalid_request_error", message).with_code("rate_limit")
    }

    pub fn lock_timeout() -> Failure {
        let message = "This object cannot be accessed right now because another API request is accessing it.";
        Failure::new(StatusCode::TOO_MANY_REQUESTS, "invalid_request_error", message.to_owned())
            .with_code("lock_timeout")
    }

    pub fn api() -> Failure {
        let message = "An unknown error occurred.".to_owned();
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "api_error", message)
    }

    /// Whether an idempotency key keeps this answer: what never began to execute is not kept.
    pub fn kept(&self) -> bool {
        self.status == StatusCode::PAYMENT_REQUIRED || self.status.is_server_error()
    }

    pub fn body(&self) -> Value {
        let mut error = json!({ "type": self.kind, "message": self.message });
        let fields =
            [("code", self.code), ("decline_code", self.decline_code.as_deref()), ("param", self.param.as_deref())];
        for (name, value) in fields.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            error[name] = value.into();
        }
        if let Some(intent) = &self.payment_intent {
            error["payment_intent"] = Value::clone(intent);
        }
        json!({ "error": error })
    }
}
