//! What upstreams report, in either protocol's words, and what is estimated where they do not.

use serde::Deserialize;

use super::json::{Count, Garbage, Object};
use super::request::LIKELY_BYTES_PER_TOKEN;
use super::{Inspection, Tally};
use crate::pricing::Tokens;

/// Bytes of text that hold at least one token, whatever the text: an answer longer than its limit times this does not
/// honour the limit.
const MOST_BYTES_PER_TOKEN: u64 = 8;

/// The member `usage`. Chat says prompt and completion, all others input and output; cached tokens have four places.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub(super) struct Usage {
    #[serde(default)]
    prompt_tokens: Count,
    #[serde(default)]
    completion_tokens: Count,
    #[serde(default)]
    total_tokens: Count,
    #[serde(default)]
    prompt_tokens_details: Object<Details>,
    #[serde(default)]
    prompt_cache_hit_tokens: Count,
    #[serde(default)]
    input_tokens: Count,
    #[serde(default)]
    output_tokens: Count,
    #[serde(default)]
    input_tokens_details: Object<Details>,
    #[serde(default)]
    cache_creation_input_tokens: Count,
    #[serde(default)]
    cache_read_input_tokens: Count,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Count,
}

/// What was reported so far; later reports replace earlier ones, member by member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Reported {
    /// Without what Anthropic counts apart.
    input: Option<u64>,
    cached: Option<u64>,
    cache_creation: Option<u64>,
    cache_read: Option<u64>,
    output: Option<u64>,
}

impl Reported {
    /// Takes a report; whether it said anything of the output. One that makes no sense is no report.
    fn take(&mut self, usage: &Usage) -> bool {
        let Ok(new) = Reported::read(usage) else { return false };
        self.input = new.input.or(self.input);
        self.cached = new.cached.or(self.cached);
        self.cache_creation = new.cache_creation.or(self.cache_creation);
        self.cache_read = new.cache_read.or(self.cache_read);
        self.output = new.output.or(self.output);
        new.output.is_some()
    }

    fn read(usage: &Usage) -> Result<Reported, Garbage> {
        let details = |details: &Object<Details>| details.0.map_or(Count::Absent, |details| details.cached_tokens);
        let cached = details(&usage.prompt_tokens_details)
            .or(details(&usage.input_tokens_details))
            .or(usage.prompt_cache_hit_tokens);
        let input = usage.prompt_tokens.or(usage.input_tokens).tokens()?;
        let output = match (usage.completion_tokens.or(usage.output_tokens).tokens()?, usage.total_tokens.tokens()?) {
            (None, Some(total)) => input.and_then(|input| total.checked_sub(input)),
            (output, _) => output,
        };
        Ok(Reported {
            input,
            output,
            cached: cached.tokens()?,
            cache_creation: usage.cache_creation_input_tokens.tokens()?,
            cache_read: usage.cache_read_input_tokens.tokens()?,
        })
    }

    /// All input tokens, the cached ones included, and the cached ones.
    fn input(&self) -> Option<(u64, u64)> {
        let read = self.cache_read.unwrap_or_default();
        let apart = self.cache_creation.unwrap_or_default().saturating_add(read);
        let input = self.input?.saturating_add(apart);
        Some((input, self.cached.unwrap_or_default().saturating_add(read).min(input)))
    }
}

/// How far an answer has come.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    reported: Reported,
    /// What was reported is the last word, not a count on the way.
    settled: bool,
    pub(super) complete: bool,
    pub(super) failed: bool,
    pub(super) images: u64,
    /// Pieces of output that were not empty, and their bytes.
    deltas: u64,
    bytes: u64,
    likely_input: u64,
    bytes_per_token: u64,
    /// The forwarded output limit times the choices.
    limit: Option<u64>,
    choices: u64,
}

impl Progress {
    pub(super) fn new(request: &Inspection) -> Progress {
        let choices = request.choices.max(1);
        Progress {
            likely_input: request.likely_input_tokens,
            bytes_per_token: request.bytes_per_token.max(1),
            limit: request.output_limit.map(|limit| limit.saturating_mul(choices)),
            choices,
            ..Progress::default()
        }
    }

    pub(super) fn set_limit(&mut self, output_limit: u64) {
        self.limit = Some(output_limit.saturating_mul(self.choices));
    }

    pub(super) fn choices(&self) -> u64 {
        self.choices
    }

    /// Takes what the upstream reports; `last` where nothing should follow it.
    pub(super) fn report(&mut self, usage: &Usage, last: bool) {
        if self.reported.take(usage) {
            self.settled = last;
        }
    }

    /// Whether input and output were reported, and nothing came after.
    pub(super) fn reported(&self) -> bool {
        self.settled && self.reported.input().is_some() && self.reported.output.is_some()
    }

    /// Whether anything was put out.
    pub(super) fn began(&self) -> bool {
        self.bytes > 0
    }

    /// A piece of output with so much text.
    pub(super) fn delta(&mut self, bytes: u64) {
        if bytes > 0 {
            self.settled = false;
            self.deltas = self.deltas.saturating_add(1);
            self.bytes = self.bytes.saturating_add(bytes);
        }
    }

    /// Output that came in one piece.
    pub(super) fn whole(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// A fair guess at the output delivered: a token for each piece, or for each four bytes where that is more.
    pub(super) fn delivered(&self) -> u64 {
        self.believe(self.deltas.max(self.bytes.div_ceil(LIKELY_BYTES_PER_TOKEN)))
    }

    /// A bound on the output delivered.
    pub(super) fn exposure(&self) -> u64 {
        let most = self.believe(self.deltas.max(self.bytes.div_ceil(self.bytes_per_token)));
        most.max(self.delivered()).max(self.reported.output.unwrap_or_default())
    }

    /// Upstreams honour limits; one that says more than fits into its limit does not.
    fn believe(&self, tokens: u64) -> u64 {
        match self.limit {
            Some(limit) => tokens.min(limit).max(self.bytes / MOST_BYTES_PER_TOKEN),
            None => tokens,
        }
    }

    pub(super) fn tally(&self) -> Tally {
        let Progress { complete, failed, images, .. } = *self;
        let input = self.reported.input();
        let output = match self.reported.output {
            Some(output) if self.settled => output,
            Some(output) => output.max(self.delivered()),
            None => self.delivered(),
        };
        let reported = self.reported();
        let (input, cached) = input.unwrap_or((self.likely_input, 0));
        if failed && output == 0 && images == 0 {
            return Tally { complete, failed, ..Tally::default() };
        }
        Tally { tokens: Tokens { input, cached, output, images }, reported, complete, failed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(usage: &str) -> Option<(u64, u64, u64)> {
        let mut progress = Progress::default();
        progress.report(&serde_json::from_str(usage).unwrap(), true);
        let Tally { tokens, reported, .. } = progress.tally();
        reported.then_some((tokens.input, tokens.cached, tokens.output))
    }

    #[test]
    fn usage_is_read_in_every_protocol() {
        let chat = r#"{"prompt_tokens":10,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":4}}"#;
        assert_eq!(tally(chat), Some((10, 4, 5)));
        let responses = r#"{"input_tokens":10,"output_tokens":5,"input_tokens_details":{"cached_tokens":4}}"#;
        assert_eq!(tally(responses), Some((10, 4, 5)));
        let messages =
            r#"{"input_tokens":10,"cache_creation_input_tokens":3,"cache_read_input_tokens":7,"output_tokens":5}"#;
        assert_eq!(tally(messages), Some((20, 7, 5)));
        assert_eq!(tally(r#"{"prompt_tokens":8,"total_tokens":8}"#), Some((8, 0, 0)), "embeddings");
    }

    /// failures 19: usage of zero is taken for missing and charged by estimate (litellm#37992).
    #[test]
    fn a_reported_zero_is_zero() {
        assert_eq!(tally(r#"{"prompt_tokens":0,"completion_tokens":0}"#), Some((0, 0, 0)));
    }

    #[test]
    fn garbage_is_no_report() {
        for usage in [
            "{}",
            r#"{"prompt_tokens":-1,"completion_tokens":5}"#,
            r#"{"prompt_tokens":1,"completion_tokens":"5"}"#,
            r#"{"prompt_tokens":1.5,"completion_tokens":5}"#,
            r#"{"prompt_tokens":1,"completion_tokens":9223372036854775808}"#,
            r#"{"prompt_tokens":1,"completion_tokens":null}"#,
            r#"{"prompt_tokens":1,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":-4}}"#,
        ] {
            assert_eq!(tally(usage), None, "{usage}");
        }
    }

    #[test]
    fn a_limit_is_believed_until_the_text_says_otherwise() {
        let mut progress = Progress { bytes_per_token: 2, limit: Some(100), ..Progress::default() };
        progress.whole(600);
        assert_eq!((progress.delivered(), progress.exposure()), (100, 100));
        progress.whole(400);
        assert_eq!((progress.delivered(), progress.exposure()), (125, 125));
        progress.limit = None;
        assert_eq!((progress.delivered(), progress.exposure()), (250, 500));
    }
}
