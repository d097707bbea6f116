//! Reads a request's body once and bounds what the request may use.
//!
//! The bound on input: all bytes of the body that are not images, documents, audio or token numbers, divided by
//! `metering.bytes_per_token`, so that tools, schemas and the body's own syntax count too; each image
//! `metering.tokens_per_image`; each document that and its bytes as text, at most 200,000 tokens; and a fixed part for
//! what the upstream adds by itself. Where a request draws on something that only the upstream has (an earlier
//! response, a stored prompt, a file, the results of a web search), the bound grows by [`ELSEWHERE_TOKENS`].

use std::ops::Range;

use bytes::Bytes;
use smallvec::SmallVec;

use super::Endpoint;
use super::body::{Body, Member, StreamOptions, budget_tokens};
use super::edit::Edits;
use crate::config;
use crate::credits::Credits;
use crate::pricing::{Price, Tokens};

/// Input that is not in the body is assumed to fill the context of a common model.
pub const ELSEWHERE_TOKENS: u64 = 128_000;

/// What chat templates and default system prompts add to the input.
const TEMPLATE_TOKENS: u64 = 64;

/// What Anthropic adds where there are tools, and for each that it describes itself.
const TOOL_TOKENS: u64 = 1_000;

/// What a special token or two add to each text of an embedding.
const TOKENS_PER_TEXT: u64 = 4;

/// No image model reports more output tokens for an image.
const OUTPUT_TOKENS_PER_IMAGE: u64 = 8_192;

/// Bytes of text that make a token, for estimates that people pay; bounds take `metering.bytes_per_token`.
pub(super) const LIKELY_BYTES_PER_TOKEN: u64 = 4;

/// A larger output limit is a mistake.
const MAX_OUTPUT_LIMIT: u64 = u32::MAX as u64;

const MAX_CHOICES: u64 = 128;
const MAX_MODEL_BYTES: usize = 256;

/// What a body says about its use.
#[derive(Debug, Clone, Default)]
pub struct Inspection {
    /// Always there, except for images.
    pub model: Option<String>,
    pub stream: bool,
    /// The client asked for usage in its stream, so it is not hidden.
    pub wants_usage: bool,
    /// At most so many input tokens.
    pub input_tokens: u64,
    /// A fair guess at the input tokens, for answers without usage.
    pub likely_input_tokens: u64,
    /// The largest output limit in the body, per choice, where its endpoint obeys one of them.
    pub output_limit: Option<u64>,
    /// How many answers are made at once: prompts times choices.
    pub choices: u64,
    /// Images asked for.
    pub images: u64,
    /// A bound for answers; see `metering` in the settings.
    pub(super) bytes_per_token: u64,
    pub(super) max_answer_bytes: usize,
    /// Output is made at all.
    has_output: bool,
    /// A limit of another endpoint, which this one may ignore.
    foreign_limit: u64,
    /// The least output limit that an upstream takes.
    least_output: u64,
    /// The endpoint's own limit, to be written where none of those it obeys is there.
    own_limit: &'static str,
    limits: SmallVec<[LimitPlace; 3]>,
    ask_usage: Option<AskUsage>,
    /// Where a member can be inserted.
    open: usize,
    /// A member that makes the answer cost something else than its model's price says.
    unpriced: Option<Member>,
}

/// An output limit in the body.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LimitPlace {
    at: Range<usize>,
    value: Option<u64>,
    /// The member that `own_limit` names.
    own: bool,
    /// The endpoint obeys it.
    obeyed: bool,
}

/// How to ask for a stream's usage.
#[derive(Debug, Clone, PartialEq, Eq)]
enum AskUsage {
    /// Replaces what is here by `true`.
    Turn(Range<usize>),
    /// Replaces `"stream_options": null`.
    Replace(Range<usize>),
    /// Inserts into `stream_options`.
    Insert { open: usize, followed: bool },
    /// Inserts `stream_options`.
    InsertOptions,
}

/// A body that cannot be priced. The text is for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BadRequest {
    pub message: String,
    /// The member at fault.
    pub param: Option<&'static str>,
}

impl BadRequest {
    pub(super) fn new(message: String) -> BadRequest {
        BadRequest { message, param: None }
    }

    pub(super) fn of(member: Member, what: &str) -> BadRequest {
        BadRequest { message: format!("`{}` {what}", member.name()), param: Some(member.name()) }
    }
}

impl Inspection {
    /// Reads the body of a metered endpoint.
    ///
    /// # Errors
    /// When it is not a JSON object, or a member that decides the price is missing, there twice, spelled in another
    /// case, of the wrong type or out of range; and when it asks for work in the background.
    pub fn read(endpoint: Endpoint, body: &[u8], settings: &config::Metering) -> Result<Inspection, BadRequest> {
        let length = body.len() as u64;
        let body = Body::read(endpoint, body)?;
        if body.flag(Member::Background)? {
            return Err(BadRequest::of(Member::Background, "is not offered here: it cannot be metered"));
        }
        let mut inspection = Inspection {
            model: body.text(Member::Model, MAX_MODEL_BYTES)?.map(|model| model.into_owned()),
            stream: body.flag(Member::Stream)?,
            has_output: !matches!(endpoint, Endpoint::Embeddings | Endpoint::Images),
            bytes_per_token: settings.bytes_per_token.max(1),
            max_answer_bytes: settings.max_answer_bytes,
            open: body.open,
            ..Inspection::default()
        };
        if inspection.model.is_none() && endpoint != Endpoint::Images {
            return Err(BadRequest::of(Member::Model, "is required"));
        }
        inspection.read_limits(endpoint, &body)?;
        inspection.read_choices(endpoint, &body)?;
        inspection.read_stream_options(endpoint, &body)?;
        inspection.bound_input(endpoint, &body, length, settings);
        inspection.unpriced = unpriced(&body);
        Ok(inspection)
    }

    /// For a price by model: whether the model that the body names is the one that answers, and at its usual price.
    ///
    /// # Errors
    /// When the body lets the upstream choose among other models, or asks for faster answers that cost more there.
    pub fn as_listed(&self) -> Result<(), BadRequest> {
        match self.unpriced {
            None => Ok(()),
            Some(member) => Err(BadRequest::of(member, "is not offered here: it has no price")),
        }
    }

    /// The most that the request may use; `output_limit` replaces its own limit (per choice) where it was clamped.
    pub fn upper_tokens(&self, price: &Price, output_limit: Option<u64>) -> Tokens {
        let per_image = OUTPUT_TOKENS_PER_IMAGE.min(price.max_output_tokens);
        let output = match self.has_output {
            true => output_limit.unwrap_or(self.own_output(price)).saturating_mul(self.choices),
            false => per_image.saturating_mul(self.images),
        };
        Tokens { input: self.input_tokens, cached: 0, output, images: self.images }
    }

    /// The largest output limit (per choice), no larger than the request's own, that `credits` pay for; `None` where
    /// no limit that makes sense is paid, or where output is not what costs.
    pub fn affordable_limit(&self, price: &Price, credits: Credits) -> Option<u64> {
        if !self.has_output {
            return None;
        }
        let all = price.affordable_output(credits, Tokens { output: 0, ..self.upper_tokens(price, None) })?;
        let each = all.checked_div(self.choices)?;
        (each >= self.least_output.max(1)).then(|| each.min(self.own_output(price)))
    }

    /// The body to forward: with the usage of a stream asked for where the protocol knows that, and with a clamped
    /// limit. The original itself when nothing changes; otherwise every other byte as it was.
    pub fn forward_body(&self, original: Bytes, output_limit: Option<u64>) -> Bytes {
        let mut edits = Edits::default();
        match &self.ask_usage {
            None => {}
            Some(AskUsage::Turn(at)) => edits.replace(at.clone(), "true"),
            Some(AskUsage::Replace(at)) => edits.replace(at.clone(), r#"{"include_usage":true}"#),
            Some(AskUsage::Insert { open, followed: true }) => edits.insert(*open, r#""include_usage":true,"#),
            Some(AskUsage::Insert { open, followed: false }) => edits.insert(*open, r#""include_usage":true"#),
            Some(AskUsage::InsertOptions) => edits.insert(self.open, r#""stream_options":{"include_usage":true},"#),
        }
        if let Some(limit) = output_limit
            && self.has_output
        {
            self.write_limit(limit, &mut edits);
        }
        edits.apply(original)
    }

    fn write_limit(&self, limit: u64, edits: &mut Edits) {
        for place in self.limits.iter().filter(|place| place.value.is_some_and(|value| value > limit)) {
            edits.replace(place.at.clone(), limit.to_string());
        }
        if self.limits.iter().any(|place| place.obeyed && place.value.is_some()) {
            return;
        }
        match self.limits.iter().find(|place| place.own) {
            Some(null) => edits.replace(null.at.clone(), limit.to_string()),
            None => edits.insert(self.open, format!("\"{}\":{limit},", self.own_limit)),
        }
    }

    fn own_output(&self, price: &Price) -> u64 {
        self.output_limit.unwrap_or(price.max_output_tokens.max(self.foreign_limit))
    }

    fn read_limits(&mut self, endpoint: Endpoint, body: &Body<'_>) -> Result<(), BadRequest> {
        let (own, obeyed): (Member, &[Member]) = match endpoint {
            Endpoint::Chat => (Member::MaxCompletionTokens, &[Member::MaxCompletionTokens, Member::MaxTokens]),
            Endpoint::Responses => (Member::MaxOutputTokens, &[Member::MaxOutputTokens]),
            _ => (Member::MaxTokens, &[Member::MaxTokens]),
        };
        self.own_limit = own.name();
        let mut obeys = false;
        for member in [Member::MaxTokens, Member::MaxCompletionTokens, Member::MaxOutputTokens] {
            let value = body.number(member, 0..MAX_OUTPUT_LIMIT + 1)?;
            if let Some(raw) = body.sent(member) {
                let obeyed = obeyed.contains(&member);
                obeys |= obeyed && value.is_some();
                self.limits.push(LimitPlace { at: raw.span(), value, own: member == own, obeyed });
            }
        }
        let largest = self.limits.iter().filter_map(|place| place.value).max();
        // A limit that the endpoint does not know limits nothing.
        match largest {
            Some(largest) if obeys => self.output_limit = Some(largest),
            _ => self.foreign_limit = largest.unwrap_or_default(),
        }
        if endpoint == Endpoint::Messages {
            if !obeys {
                return Err(BadRequest::of(Member::MaxTokens, "is required"));
            }
            let budget = body.get(Member::Thinking).and_then(budget_tokens).unwrap_or_default();
            self.least_output = budget.saturating_add(1);
        } else if endpoint == Endpoint::Responses {
            self.least_output = 16;
        }
        Ok(())
    }

    fn read_choices(&mut self, endpoint: Endpoint, body: &Body<'_>) -> Result<(), BadRequest> {
        let choices = 1..MAX_CHOICES + 1;
        let n = body.number(Member::N, choices.clone())?.unwrap_or(1);
        let best_of = body.number(Member::BestOf, choices)?.unwrap_or(1);
        self.choices = match endpoint {
            Endpoint::Chat => n,
            Endpoint::Completions => n.max(best_of).saturating_mul(body.prompts.count.max(1)),
            _ => 1,
        };
        self.images = if endpoint == Endpoint::Images { n } else { 0 };
        Ok(())
    }

    fn read_stream_options(&mut self, endpoint: Endpoint, body: &Body<'_>) -> Result<(), BadRequest> {
        if !self.stream || !matches!(endpoint, Endpoint::Chat | Endpoint::Completions) {
            return Ok(());
        }
        self.ask_usage = match body.sent(Member::StreamOptions) {
            None => Some(AskUsage::InsertOptions),
            Some(raw) if raw.is_null() => Some(AskUsage::Replace(raw.span())),
            Some(raw) => match StreamOptions::read(raw)? {
                StreamOptions::Asked => None,
                StreamOptions::Declined(at) => Some(AskUsage::Turn(at)),
                StreamOptions::Silent { open, followed } => Some(AskUsage::Insert { open, followed }),
            },
        };
        self.wants_usage = self.ask_usage.is_none();
        Ok(())
    }

    fn bound_input(&mut self, endpoint: Endpoint, body: &Body<'_>, length: u64, settings: &config::Metering) {
        let references = [
            Member::PreviousResponseId,
            Member::Conversation,
            Member::McpServers,
            Member::Container,
            Member::WebSearchOptions,
        ];
        let elsewhere = body.media.elsewhere
            || body.tools.hosted
            || references.into_iter().any(|member| body.get(member).is_some())
            || (endpoint == Endpoint::Responses && body.get(Member::Prompt).is_some());
        let text = length.saturating_sub(body.media.bytes).saturating_sub(body.prompts.token_bytes);
        let rest =
            body.media.tokens(settings.tokens_per_image, self.bytes_per_token).saturating_add(body.prompts.tokens);
        let added = match endpoint {
            Endpoint::Embeddings => TOKENS_PER_TEXT.saturating_mul(body.prompts.count),
            Endpoint::Messages if body.tools.count > 0 => {
                TOOL_TOKENS.saturating_mul(body.tools.built_in.saturating_add(1))
            }
            _ => TEMPLATE_TOKENS,
        };
        self.likely_input_tokens = (text / LIKELY_BYTES_PER_TOKEN).saturating_add(rest);
        self.input_tokens = text
            .div_ceil(self.bytes_per_token)
            .saturating_add(rest)
            .saturating_add(added)
            .saturating_add(if elsewhere { ELSEWHERE_TOKENS } else { 0 });
    }
}

/// Routers of models take lists of them to choose from; priority and speed multiply what a token costs the operator.
fn unpriced(body: &Body<'_>) -> Option<Member> {
    let says = |member: Member, what: &str| {
        let text = body.text(member, MAX_MODEL_BYTES).ok().flatten();
        text.is_some_and(|text| text.trim().eq_ignore_ascii_case(what))
    };
    let others = [Member::Models, Member::Fallbacks].into_iter().find(|member| body.get(*member).is_some());
    others
        .or(says(Member::ServiceTier, "priority").then_some(Member::ServiceTier))
        .or(says(Member::Speed, "fast").then_some(Member::Speed))
}

#[cfg(test)]
mod tests;
