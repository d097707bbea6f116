//! What a request can ask of the upstream.
//!
//! As a header `x-sim-<knob>: <value>`, or in the model's name after an `@`: `any-model@tokens=50,chunk-ms=20`. Headers win.
//!
//! | knob | does |
//! | --- | --- |
//! | `tokens` | output tokens of the answer (13) |
//! | `chunk-tokens` | output tokens in one event of a stream (1) |
//! | `first-byte-ms` | waits before the answer's head |
//! | `chunk-ms` | waits before each piece of a body but the first |
//! | `status` | fails with this status, in the endpoint's own error form |
//! | `fail-first` | with `status` (503): fails only so many times, counted by `fail-key` |
//! | `retry-after` | sets that header on a failure |
//! | `refuse` | closes the connection without an answer |
//! | `reset-after` | breaks the connection after so many pieces of the body |
//! | `stall-after` | sends nothing more after so many pieces, and keeps the connection |
//! | `usage` | `none`, `zero`, `garbage`, `negative`, `huge`, `early` (also on chunks with choices), `double` (twice) |
//! | `half-event` | the body ends properly in the middle of its last event |
//! | `split` | cuts the body into pieces of so many bytes, wherever events end |
//! | `crlf` | lines of a stream end in CR LF |
//! | `comments` | a comment line before each event |
//! | `body-bytes` | at least so many bytes of padding in a plain answer |
//! | `garbage` | a plain answer that is no JSON, or a stream of no events |
//! | `encoding` | a coding that the answer's head names (the body stays as it is) |
//! | `cached` | so many of the input tokens are reported as cached |
//! | `echo` | answers what was received instead, whatever the endpoint |

use std::time::Duration;

use http::HeaderMap;

/// Most output tokens of one answer.
const TOKENS_MAX: u64 = 1_000_000;
/// Longest wait of any kind, in milliseconds.
const WAIT_MAX_MS: u64 = 600_000;
/// Most padding, in bytes.
const PADDING_MAX: u64 = 1 << 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UsageForm {
    #[default]
    Exact,
    None,
    Zero,
    Garbage,
    Negative,
    Huge,
    Early,
    Double,
}

/// The knobs of one request. Unknown ones and unreadable values are ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Knobs {
    pub tokens: u64,
    pub chunk_tokens: u64,
    pub first_byte: Duration,
    pub chunk: Duration,
    pub status: Option<u16>,
    pub fail_first: Option<u64>,
    pub fail_key: String,
    pub retry_after: Option<String>,
    pub refuse: bool,
    pub reset_after: Option<u64>,
    pub stall_after: Option<u64>,
    pub usage: UsageForm,
    pub half_event: bool,
    pub split: Option<usize>,
    pub crlf: bool,
    pub comments: bool,
    pub body_bytes: u64,
    pub garbage: bool,
    pub cached: u64,
    pub echo: bool,
    pub encoding: Option<String>,
}

impl Default for Knobs {
    fn default() -> Knobs {
        Knobs {
            tokens: super::text::SENTENCE.len() as u64,
            chunk_tokens: 1,
            first_byte: Duration::ZERO,
            chunk: Duration::ZERO,
            status: None,
            fail_first: None,
            fail_key: String::new(),
            retry_after: None,
            refuse: false,
            reset_after: None,
            stall_after: None,
            usage: UsageForm::Exact,
            half_event: false,
            split: None,
            crlf: false,
            comments: false,
            body_bytes: 0,
            garbage: false,
            cached: 0,
            echo: false,
            encoding: None,
        }
    }
}

impl Knobs {
    pub fn read(model: Option<&str>, headers: &HeaderMap) -> Knobs {
        let mut knobs = Knobs::default();
        let in_model = model.and_then(|model| model.split_once('@')).map_or("", |(_, asked)| asked);
        for (name, value) in in_model.split(',').filter_map(|pair| pair.split_once('=')) {
            knobs.set(name, value);
        }
        for (name, value) in headers {
            if let (Some(name), Ok(value)) = (name.as_str().strip_prefix("x-sim-"), value.to_str()) {
                knobs.set(name, value);
            }
        }
        knobs
    }

    /// Whether the body must be sent piece by piece even where a plain answer would do.
    pub fn paced(&self) -> bool {
        self.reset_after.is_some() || self.stall_after.is_some() || self.split.is_some() || self.body_bytes > 0
    }

    fn set(&mut self, name: &str, value: &str) {
        let number = value.parse::<u64>().ok();
        let on = matches!(value, "1" | "true" | "on" | "yes");
        let wait = Duration::from_millis(number.unwrap_or(0).min(WAIT_MAX_MS));
        match name {
            "tokens" => self.tokens = number.unwrap_or(self.tokens).min(TOKENS_MAX),
            "chunk-tokens" => self.chunk_tokens = number.unwrap_or(1).clamp(1, TOKENS_MAX),
            "first-byte-ms" => self.first_byte = wait,
            "chunk-ms" => self.chunk = wait,
            "status" => self.status = value.parse().ok().filter(|status| (400..600).contains(status)),
            "fail-first" => self.fail_first = number,
            "fail-key" => self.fail_key = value.chars().take(64).collect(),
            "retry-after" => self.retry_after = Some(value.to_owned()),
            "refuse" => self.refuse = on,
            "reset-after" => self.reset_after = number,
            "stall-after" => self.stall_after = number,
            "usage" => self.usage = usage_form(value),
            "half-event" => self.half_event = on,
            "split" => self.split = number.and_then(|bytes| usize::try_from(bytes).ok()).filter(|&bytes| bytes > 0),
            "crlf" => self.crlf = on,
            "comments" => self.comments = on,
            "body-bytes" => self.body_bytes = number.unwrap_or(0).min(PADDING_MAX),
            "garbage" => self.garbage = on,
            "cached" => self.cached = number.unwrap_or(0),
            "echo" => self.echo = on,
            "encoding" => self.encoding = Some(value.to_owned()),
            _ => {}
        }
    }
}

fn usage_form(value: &str) -> UsageForm {
    match value {
        "none" => UsageForm::None,
        "zero" => UsageForm::Zero,
        "garbage" => UsageForm::Garbage,
        "negative" => UsageForm::Negative,
        "huge" => UsageForm::Huge,
        "early" => UsageForm::Early,
        "double" => UsageForm::Double,
        _ => UsageForm::Exact,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_win_over_the_models_name() {
        let mut headers = HeaderMap::new();
        headers.insert("x-sim-tokens", "7".parse().unwrap());
        let knobs = Knobs::read(Some("gpt@tokens=50,usage=none,nonsense=1"), &headers);
        assert_eq!((knobs.tokens, knobs.usage), (7, UsageForm::None));
        assert_eq!(Knobs::read(Some("gpt"), &HeaderMap::new()), Knobs::default());
    }
}
