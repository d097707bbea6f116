//! What a test asks to go wrong with API calls.

use std::time::Duration;

/// Most faults at a time.
const FAULTS_MAX: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection ends without an answer, and nothing happened.
    ResetBefore,
    /// The connection ends without an answer, and it happened.
    ResetAfter,
    /// It happened, and no answer comes.
    SilentAfter,
    /// 500, nothing happened; the idempotency key keeps this answer.
    Error,
    /// 500, and it happened; the idempotency key keeps this answer.
    ErrorAfter,
    /// 429; the key keeps nothing.
    RateLimit,
    /// 429 `lock_timeout`; the key keeps nothing.
    LockTimeout,
    /// The answer comes this much later.
    Delay(Duration),
}

/// A fault of the next `times` calls of `method` whose path begins with `path`; an empty one fits all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultRule {
    pub method: String,
    pub path: String,
    pub fault: Fault,
    pub times: u32,
}

#[derive(Debug, Default)]
pub(super) struct Faults(Vec<FaultRule>);

impl Faults {
    pub(super) fn add(&mut self, rule: FaultRule) {
        if self.0.len() < FAULTS_MAX {
            self.0.push(rule);
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The fault of this call, used up.
    pub(super) fn take(&mut self, method: &str, path: &str) -> Option<Fault> {
        let fits = |rule: &FaultRule| (rule.method.is_empty() || rule.method == method) && path.starts_with(&rule.path);
        let rule = self.0.iter_mut().find(|rule| rule.times > 0 && fits(rule))?;
        rule.times -= 1;
        let fault = rule.fault;
        self.0.retain(|rule| rule.times > 0);
        Some(fault)
    }
}

impl Fault {
    /// `reset_before`, `reset_after`, `silent_after`, `error`, `error_after`, `rate_limit`, `lock_timeout`,
    /// `delay:<milliseconds>`.
    pub fn parse(text: &str) -> Option<Fault> {
        Some(match text {
            "reset_before" => Fault::ResetBefore,
            "reset_after" => Fault::ResetAfter,
            "silent_after" => Fault::SilentAfter,
            "error" => Fault::Error,
            "error_after" => Fault::ErrorAfter,
            "rate_limit" => Fault::RateLimit,
            "lock_timeout" => Fault::LockTimeout,
            _ => Fault::Delay(Duration::from_millis(text.strip_prefix("delay:")?.parse::<u64>().ok()?.min(600_000))),
        })
    }
}
