//! Edits of a JSON body that leave every other byte as it was.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use smallvec::SmallVec;

/// One replacement; an empty range inserts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Edit {
    pub(super) at: Range<usize>,
    pub(super) text: Cow<'static, str>,
}

/// Replacements in one body. They do not overlap.
#[derive(Debug, Default)]
pub(super) struct Edits(SmallVec<[Edit; 4]>);

impl Edits {
    pub(super) fn replace(&mut self, at: Range<usize>, text: impl Into<Cow<'static, str>>) {
        self.0.push(Edit { at, text: text.into() });
    }

    pub(super) fn insert(&mut self, at: usize, text: impl Into<Cow<'static, str>>) {
        self.replace(at..at, text);
    }

    /// The edited body; the original itself when there is nothing to do, or when it is not the body that the edits
    /// were made for.
    pub(super) fn apply(mut self, original: Bytes) -> Bytes {
        if self.0.is_empty() {
            return original;
        }
        // Stable: what is inserted at one place stays in order.
        self.0.sort_by_key(|edit| edit.at.start);
        let added: usize = self.0.iter().map(|edit| edit.text.len()).sum();
        let mut edited = Vec::with_capacity(original.len().saturating_add(added));
        let mut from = 0;
        for edit in &self.0 {
            let Some(kept) = original.get(from..edit.at.start) else { return original };
            edited.extend_from_slice(kept);
            edited.extend_from_slice(edit.text.as_bytes());
            from = edit.at.end;
        }
        let Some(rest) = original.get(from..) else { return original };
        edited.extend_from_slice(rest);
        Bytes::from(edited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_touch_nothing_else() {
        let mut edits = Edits::default();
        edits.replace(8..9, "22");
        edits.insert(1, "\"b\":0,");
        assert_eq!(edits.apply(Bytes::from_static(b"{ \"a\" : 1 }")), &b"{\"b\":0, \"a\" : 22 }"[..]);
        let body = Bytes::from_static(b"{}");
        assert_eq!(Edits::default().apply(body.clone()).as_ptr(), body.as_ptr());
    }

    #[test]
    fn edits_of_another_body_do_nothing() {
        let mut edits = Edits::default();
        edits.replace(8..9, "22");
        assert_eq!(edits.apply(Bytes::from_static(b"{}")), &b"{}"[..]);
    }
}
