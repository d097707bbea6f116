//! What a key may do, where that is less than its owner may.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::store::KeyRow;

/// Globs of one key.
pub const MAX_MODELS: usize = 64;
pub const MAX_MODEL_CHARS: usize = 128;

/// The limits of one key.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Its requests hold a share of the key's budget.
    pub budgeted: bool,
    models: Option<Models>,
}

#[derive(Debug, Clone)]
struct Models {
    globs: Vec<String>,
    set: GlobSet,
}

impl PartialEq for Scope {
    fn eq(&self, other: &Scope) -> bool {
        let globs = |scope: &Scope| scope.models.as_ref().map(|models| models.globs.clone());
        self.budgeted == other.budgeted && globs(self) == globs(other)
    }
}

impl Eq for Scope {}

/// The globs of a key cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("not a model or a glob over models: {0}")]
pub struct BadModels(pub String);

impl Scope {
    /// `None` for a key that may do all that its owner may.
    ///
    /// # Errors
    /// Where a glob cannot be read: such a key is of no use rather than without limits.
    pub fn of(key: &KeyRow) -> Result<Option<Scope>, BadModels> {
        let models = key.models.as_deref().map(compile).transpose()?;
        if key.budget.is_none() && models.is_none() && key.expires_at.is_none() {
            return Ok(None);
        }
        Ok(Some(Scope { budgeted: key.budget.is_some(), models }))
    }

    /// Whether requests must name a model that the key may ask for.
    pub fn names_models(&self) -> bool {
        self.models.is_some()
    }

    pub fn allows(&self, model: Option<&str>) -> bool {
        match (&self.models, model) {
            (None, _) => true,
            (Some(models), Some(model)) => models.set.is_match(model.trim()),
            (Some(_), None) => false,
        }
    }
}

/// Whether these can be the models of a key.
///
/// # Errors
/// Where one is no glob, or there are none or too many.
pub fn check_models(globs: &[String]) -> Result<(), BadModels> {
    if !(1..=MAX_MODELS).contains(&globs.len()) {
        return Err(BadModels(format!("1 to {MAX_MODELS} of them are needed")));
    }
    compile(globs).map(drop)
}

/// As prices read them: case does not matter.
fn compile(globs: &[String]) -> Result<Models, BadModels> {
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        let fits = !glob.is_empty() && glob.chars().count() <= MAX_MODEL_CHARS;
        let built = GlobBuilder::new(glob).case_insensitive(true).build();
        match built {
            Ok(built) if fits => drop(set.add(built)),
            _ => return Err(BadModels(glob.chars().take(MAX_MODEL_CHARS).collect())),
        }
    }
    let set = set.build().map_err(|error| BadModels(error.to_string()))?;
    Ok(Models { globs: globs.to_vec(), set })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::keys::{NewKey, new_key_id};
    use crate::store::KeyKind;

    fn key(models: Option<&[&str]>) -> KeyRow {
        let row = NewKey::generate(KeyKind::Live).unwrap().row(new_key_id(), None, "k".into(), 1);
        KeyRow { models: models.map(|globs| globs.iter().map(ToString::to_string).collect()), ..row }
    }

    #[test]
    fn a_key_asks_for_its_own_models_only() {
        assert_eq!(Scope::of(&key(None)).unwrap(), None);
        let scope = Scope::of(&key(Some(&["gpt-4o*", "claude-3"]))).unwrap().unwrap();
        for (model, allowed) in [("gpt-4o-mini", true), (" GPT-4o", true), ("claude-3-opus", false), ("o1", false)] {
            assert_eq!(scope.allows(Some(model)), allowed, "{model}");
        }
        assert!(!scope.allows(None), "what names no model asks for any");
        assert!(Scope::of(&key(Some(&["gpt-["]))).is_err());
        let many: Vec<String> = vec!["a".into(); MAX_MODELS + 1];
        assert!(check_models(&[]).is_err() && check_models(&many).is_err() && check_models(&["".into()]).is_err());
        assert!(check_models(&["*".into()]).is_ok());
    }
}
