//! Requests as Stripe reads them: `application/x-www-form-urlencoded`, nested names in brackets.

use std::fmt::Write as _;

/// The fields of one request, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Form(Vec<(String, String)>);

impl Form {
    pub fn new() -> Form {
        Form::default()
    }

    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl ToString) -> Form {
        self.0.push((name.into(), value.to_string()));
        self
    }

    /// Adds the field where there is a value.
    #[must_use]
    pub fn with_some(self, name: impl Into<String>, value: Option<impl ToString>) -> Form {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn encode(&self) -> String {
        let mut out = String::new();
        for (name, value) in &self.0 {
            if !out.is_empty() {
                out.push('&');
            }
            escape(name, &mut out);
            out.push('=');
            escape(value, &mut out);
        }
        out
    }
}

/// Escapes what goes into a path or a field.
pub(super) fn escape(text: &str, out: &mut String) {
    for byte in text.bytes() {
        // RFC 3986 2.3: these are never escaped.
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_escaped() {
        let form = Form::new().with("metadata[a b]", "é&=").with_some("none", None::<i64>).with("n", 5);
        assert_eq!(form.encode(), "metadata%5Ba%20b%5D=%C3%A9%26%3D&n=5");
    }
}
