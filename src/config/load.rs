//! Built-in file, then `--config FILE`, then the environment; then the whole is validated. All that is wrong is told at
//! once, each with where it was written.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::environment::{self, Target};
use super::read::{ReadError, Root, Wrong};
use super::tree::{self, Node, Origin, Table};
use super::{Config, schema, validate};

/// Every setting with its default and a word about it.
pub const BUILT_IN: &str = include_str!("../../config/faregate.toml");
/// No more than so many mistakes are told at once.
const MAX_PROBLEMS: usize = 20;

/// What is wrong with the settings: complete sentences that name where each was written, and never a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    pub problems: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.as_slice() {
            [only] => write!(out, "the settings are wrong: {only}"),
            several => {
                write!(out, "{} settings are wrong:", several.len())?;
                several.iter().try_for_each(|problem| write!(out, "\n  {problem}"))
            }
        }
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Loads and validates. `env` are the process's variables; those without `FAREGATE_` are passed over, and an empty
    /// one counts as unset.
    pub fn load(file: Option<&Path>, env: impl Iterator<Item = (String, String)>) -> Result<Config, ConfigError> {
        let mut root = layer(BUILT_IN, Path::new("faregate.toml (built in)"))?;
        if let Some(path) = file {
            let text = std::fs::read_to_string(path)
                .map_err(|error| one(format!("{} cannot be read: {error}", path.display())))?;
            tree::merge(&mut root, layer(&text, path)?);
        }
        let mut variables: Vec<_> = env.filter(|(name, _)| name.starts_with(environment::PREFIX)).collect();
        // In a fixed order, so that the same environment gives the same settings everywhere.
        variables.sort();
        for (name, text) in variables {
            if let Target::Setting(path) = environment::target(&name, &text) {
                tree::place(&mut root, &path, &Origin::Variable(name.into()), text);
            }
        }
        tree::drop_disabled(&mut root);
        read(root)
    }
}

fn one(problem: String) -> ConfigError {
    ConfigError { problems: vec![problem] }
}

fn layer(text: &str, path: &Path) -> Result<Table, ConfigError> {
    let path: Arc<Path> = path.into();
    tree::parse(text, &path).map_err(|(line, message)| one(format!("{}:{line}: {message}", path.display())))
}

/// Reads the tree again and again, each time without what was found wrong, until all that is wrong is known.
fn read(mut root: Table) -> Result<Config, ConfigError> {
    let mut problems = Vec::new();
    while problems.len() < MAX_PROBLEMS {
        match Config::deserialize(Root(&root)) {
            Ok(config) if problems.is_empty() => return check(config, &mut root),
            Ok(_) => break,
            Err(error) => {
                problems.push(describe(&error));
                match tree::deepest(&mut root, &error.path()) {
                    Some(node) if !node.skipped => node.skipped = true,
                    _ => break,
                }
            }
        }
    }
    Err(ConfigError { problems })
}

fn check(config: Config, root: &mut Table) -> Result<Config, ConfigError> {
    let found = validate::validate(&config);
    if found.is_empty() {
        return Ok(config);
    }
    let place = |(path, message): (String, String)| {
        let names: Vec<String> = path.split('.').map(str::to_owned).collect();
        match tree::deepest(root, &names).map(|node: &mut Node| node.origin.clone()) {
            Some(origin) => format!("{origin}: `{path}` {message}"),
            None => format!("`{path}` {message}"),
        }
    };
    Err(ConfigError { problems: found.into_iter().take(MAX_PROBLEMS).map(place).collect() })
}

fn describe(error: &ReadError) -> String {
    let path = error.path();
    let dotted = path.join(".");
    match (&error.wrong, error.origin()) {
        (Wrong::Unknown, Some(Origin::Variable(name))) => {
            let nearest = nearest(name, schema::settings().iter().flat_map(|known| environment::names(known, name)));
            format!("{name} is not a setting{nearest}")
        }
        (Wrong::Unknown, origin) => {
            let nearest = nearest(&dotted, schema::settings().iter().map(|known| with_names(known, &path)));
            let origin = origin.map(|origin| format!("{origin}: ")).unwrap_or_default();
            format!("{origin}`{dotted}` is not a setting{nearest}")
        }
        (Wrong::Value(message), origin) => {
            let origin = origin.map(|origin| format!("{origin}: ")).unwrap_or_default();
            // Host names are tried here, and the parser's own words do not say what is wanted.
            let hint = if dotted.ends_with("listen") { "; give address and port, such as 127.0.0.1:8080" } else { "" };
            format!("{origin}`{dotted}` {message}{hint}")
        }
    }
}

/// The known path with the operator's own names where it has a `*`.
fn with_names(known: &str, path: &[String]) -> String {
    let names = known.split('.').enumerate().map(|(index, name)| match (name, path.get(index)) {
        ("*", Some(own)) => own.as_str(),
        ("*", None) => "NAME",
        _ => name,
    });
    names.collect::<Vec<_>>().join(".")
}

fn nearest(wrong: &str, known: impl Iterator<Item = String>) -> String {
    let distance = |known: &String| strsim::damerau_levenshtein(wrong, known);
    known.min_by_key(distance).map(|known| format!("; the nearest is {known}")).unwrap_or_default()
}
