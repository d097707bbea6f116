//! The parameters of a request: form-encoded, nested by brackets, every leaf a text.

use serde_json::{Map, Value};

use super::error::Failure;

/// Most pairs in one request.
const PAIRS_MAX: usize = 1_000;
/// Deepest nesting of brackets.
const DEPTH_MAX: usize = 8;
const METADATA_KEYS_MAX: usize = 50;
const METADATA_KEY_BYTES_MAX: usize = 40;
const METADATA_VALUE_BYTES_MAX: usize = 500;

/// A tree of texts; an array is a map with numbers for keys.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Params(Value);

/// From a tree kept earlier.
impl From<Value> for Params {
    fn from(tree: Value) -> Params {
        Params(tree)
    }
}

impl Params {
    /// # Errors
    /// More pairs or deeper brackets than anybody needs, or a name that is both a text and a map.
    pub(super) fn parse(form: &[u8]) -> Result<Params, Failure> {
        let mut root = Value::Object(Map::new());
        for (count, (name, value)) in form_urlencoded::parse(form).enumerate() {
            if count == PAIRS_MAX {
                return Err(Failure::invalid("", "Too many parameters."));
            }
            put(&mut root, &name, &value)?;
        }
        Ok(Params(root))
    }

    /// One canonical text for the same parameters, whatever their order.
    pub(super) fn canonical(&self) -> String {
        self.0.to_string()
    }

    pub(super) fn raw(&self) -> &Value {
        &self.0
    }

    /// By path: `a.b.0.c`. An empty text counts as not given, as with Stripe.
    pub(super) fn text(&self, path: &str) -> Option<&str> {
        self.find(path)?.as_str().filter(|text| !text.is_empty())
    }

    /// Whether the parameter was sent empty, which is how one unsets a field.
    pub(super) fn unset(&self, path: &str) -> bool {
        self.find(path).is_some_and(|value| value == "")
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.find(path).is_some()
    }

    /// # Errors
    /// When it is missing.
    pub(super) fn need(&self, path: &str) -> Result<&str, Failure> {
        self.text(path).ok_or_else(|| Failure::missing(&bracketed(path)))
    }

    /// # Errors
    /// When it is no integer.
    pub(super) fn int(&self, path: &str) -> Result<Option<i64>, Failure> {
        let Some(text) = self.text(path) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| Failure::invalid(&bracketed(path), format!("Invalid integer: {text}")))
    }

    /// # Errors
    /// When it is neither `true` nor `false`.
    pub(super) fn flag(&self, path: &str) -> Result<Option<bool>, Failure> {
        match self.text(path) {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(text) => Err(Failure::invalid(&bracketed(path), format!("Invalid boolean: {text}"))),
        }
    }

    /// One of a fixed set of words.
    ///
    /// # Errors
    /// When it is another one.
    pub(super) fn one_of(&self, path: &str, words: &[&'static str]) -> Result<Option<&'static str>, Failure> {
        let Some(text) = self.text(path) else { return Ok(None) };
        words.iter().find(|word| **word == text).copied().map(Some).ok_or_else(|| {
            let name = bracketed(path);
            Failure::invalid(&name, format!("Invalid {name}: must be one of {}", words.join(", ")))
        })
    }

    pub(super) fn sub(&self, path: &str) -> Params {
        Params(self.find(path).cloned().unwrap_or_else(|| Value::Object(Map::new())))
    }

    /// The members of an array, in order.
    pub(super) fn list(&self, path: &str) -> Vec<Params> {
        let Some(Value::Object(members)) = self.find(path) else { return Vec::new() };
        let mut members: Vec<_> =
            members.iter().filter_map(|(at, value)| Some((at.parse::<u32>().ok()?, value))).collect();
        members.sort_by_key(|(at, _)| *at);
        members.into_iter().map(|(_, value)| Params(value.clone())).collect()
    }

    /// The texts of an array, in order.
    pub(super) fn texts(&self, path: &str) -> Vec<String> {
        self.list(path).iter().filter_map(|member| member.0.as_str().map(str::to_owned)).collect()
    }

    /// Refuses a name that the endpoint does not know: a misspelt parameter must not be lost in silence.
    ///
    /// # Errors
    /// On the first unknown one.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), Failure> {
        let unknown = self
            .0
            .as_object()
            .and_then(|names| names.keys().find(|name| name.as_str() != "expand" && !known.contains(&name.as_str())));
        unknown.map_or(Ok(()), |name| Err(Failure::unknown(name)))
    }

    pub(super) fn remove(&mut self, name: &str) {
        if let Some(names) = self.0.as_object_mut() {
            names.remove(name);
        }
    }

    /// Merges `metadata` (at `path`) into an object's own; an empty value removes its key.
    ///
    /// # Errors
    /// Above Stripe's limits.
    pub(super) fn metadata(&self, path: &str, old: &Value) -> Result<Value, Failure> {
        if self.unset(path) {
            return Ok(Value::Object(Map::new()));
        }
        let mut merged = old.as_object().cloned().unwrap_or_default();
        let Some(Value::Object(given)) = self.find(path) else { return Ok(Value::Object(merged)) };
        for (key, value) in given {
            let text =
                value.as_str().ok_or_else(|| Failure::invalid("metadata", "Metadata values must be strings."))?;
            if key.len() > METADATA_KEY_BYTES_MAX || text.len() > METADATA_VALUE_BYTES_MAX {
                return Err(Failure::invalid("metadata", "A metadata key or value is too long."));
            }
            if text.is_empty() {
                merged.remove(key);
            } else {
                merged.insert(key.clone(), value.clone());
            }
        }
        if merged.len() > METADATA_KEYS_MAX {
            return Err(Failure::invalid("metadata", "Metadata can have at most 50 keys."));
        }
        Ok(Value::Object(merged))
    }

    fn find(&self, path: &str) -> Option<&Value> {
        path.split('.').try_fold(&self.0, |at, name| at.get(name))
    }
}

/// `a.b` as Stripe writes it: `a[b]`.
fn bracketed(path: &str) -> String {
    let mut names = path.split('.');
    let first = names.next().unwrap_or_default().to_owned();
    names.fold(first, |text, name| format!("{text}[{name}]"))
}

fn put(root: &mut Value, name: &str, value: &str) -> Result<(), Failure> {
    let (first, rest) = name.split_at(name.find('[').unwrap_or(name.len()));
    let mut at = root;
    let inner = rest.split('[').skip(1).map(|part| part.trim_end_matches(']'));
    for (depth, key) in std::iter::once(first).chain(inner).enumerate() {
        if depth == DEPTH_MAX {
            return Err(Failure::invalid(first, "Parameters are nested too deeply."));
        }
        if at.is_null() {
            *at = Value::Object(Map::new());
        }
        let Value::Object(members) = at else {
            return Err(Failure::invalid(first, format!("Invalid {first}")));
        };
        let key = if key.is_empty() { members.len().to_string() } else { key.to_owned() };
        at = members.entry(key).or_insert(Value::Null);
    }
    if at.is_object() {
        return Err(Failure::invalid(first, format!("Invalid {first}")));
    }
    *at = Value::String(value.to_owned());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_nest_and_arrays_keep_their_order() {
        let form =
            b"line_items[1][price]=b&line_items[0][price]=a&expand[]=x&expand[]=y.z&metadata[user%20id]=u+1&n=7&off=";
        let params = Params::parse(form).unwrap();
        let prices: Vec<_> =
            params.list("line_items").iter().map(|item| item.text("price").unwrap().to_owned()).collect();
        assert_eq!(prices, ["a", "b"]);
        assert_eq!(params.texts("expand"), ["x", "y.z"]);
        assert_eq!(params.text("metadata.user id"), Some("u 1"));
        assert_eq!(params.int("n").unwrap(), Some(7));
        assert!(params.unset("off") && params.text("off").is_none());
        assert_eq!(params.only(&["line_items", "metadata", "n"]).unwrap_err().param.as_deref(), Some("off"));
    }

    #[test]
    fn nonsense_is_refused_and_not_guessed() {
        assert!(Params::parse(b"a=1&a[b]=2").is_err());
        assert!(Params::parse(b"a[b]=2&a=1").is_err());
        assert!(Params::parse(b"a[b][c][d][e][f][g][h][i]=1").is_err());
        assert!(Params::parse("a=1&".repeat(PAIRS_MAX + 1).as_bytes()).is_err());
        assert!(Params::parse(b"n=1.5").unwrap().int("n").is_err());
    }

    #[test]
    fn metadata_merges_and_an_empty_value_removes() {
        let params = Params::parse(b"metadata[a]=&metadata[b]=2").unwrap();
        let merged = params.metadata("metadata", &serde_json::json!({ "a": "1", "c": "3" })).unwrap();
        assert_eq!(merged, serde_json::json!({ "b": "2", "c": "3" }));
    }
}
