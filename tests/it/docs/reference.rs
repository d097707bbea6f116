//! `docs/configuration.md` is made from `config/faregate.toml`, which the program is built with. After a change of the
//! settings: FAREGATE_WRITE_DOCS=1 cargo test --test it docs::reference

use super::{file, read};

const PAGE: &str = "docs/configuration.md";
const HEAD: &str = "\
# Configuration

Every setting, made from [config/faregate.toml](../config/faregate.toml) by a test. Give a file of your own with
`--config FILE` or `FAREGATE_CONFIG`; it needs only what differs. Each setting is also a variable, which overrides the file.
`faregate check` tells what is wrong with a configuration and what would run. In the table an example stands for a setting
without a default, as *such as*.
";

struct Setting {
    name: String,
    value: String,
    /// The line is commented out: an example of a setting without a default.
    example: bool,
    meaning: String,
}

/// The comment lines before it become the meaning of a setting, or the introduction of a group.
fn page(toml: &str) -> String {
    let mut out = HEAD.to_owned();
    let (mut group, mut comment) = (String::new(), Vec::new());
    let mut settings: Vec<Setting> = Vec::new();
    let mut introduction = Vec::new();
    // The first paragraph is about the file itself.
    let (_, body) = toml.split_once("\n\n").unwrap();
    let (_, body) = body.split_once("\n\n").unwrap_or(("", body));
    let start = toml.len() - body.len();
    for line in toml[start..].lines() {
        let example = line.starts_with('#') && !line.starts_with("# ") && line.len() > 1;
        let code = if example { &line[1..] } else { line };
        if let Some(words) = line.strip_prefix("# ") {
            comment.push(words.trim().to_owned());
        } else if code.starts_with('[') {
            flush(&mut out, &group, &introduction, &mut settings);
            group = code.trim_matches(['[', ']']).to_owned();
            introduction = std::mem::take(&mut comment);
        } else if let Some((name, value)) = code.split_once(" = ") {
            let meaning = std::mem::take(&mut comment).join(" ");
            settings.push(Setting { name: name.to_owned(), value: value.to_owned(), example, meaning });
        } else {
            assert!(line.is_empty(), "a line that is no setting: {line}");
        }
    }
    flush(&mut out, &group, &introduction, &mut settings);
    out
}

fn flush(out: &mut String, group: &str, introduction: &[String], settings: &mut Vec<Setting>) {
    if !group.is_empty() {
        out.push_str(&format!("\n## {group}\n"));
    }
    if !introduction.is_empty() {
        out.push_str(&format!("\n{}\n", introduction.join(" ")));
    }
    if settings.is_empty() {
        return;
    }
    out.push_str("\n| setting | default | meaning | variable |\n| --- | --- | --- | --- |\n");
    for Setting { name, value, example, meaning } in settings.drain(..) {
        let path = if group.is_empty() { name.clone() } else { format!("{group}.{name}") };
        let variable = format!("FAREGATE_{}", path.to_uppercase().replace('.', "__"));
        let value = value.replace('|', "\\|");
        let default = if example { format!("*such as* `{value}`") } else { format!("`{value}`") };
        out.push_str(&format!("| `{name}` | {default} | {} | `{variable}` |\n", meaning.replace('|', "\\|")));
    }
}

#[test]
fn the_configuration_page_is_made_from_the_settings() {
    let made = page(&read("config/faregate.toml"));
    if std::env::var_os("FAREGATE_WRITE_DOCS").is_some() {
        std::fs::write(file(PAGE), &made).unwrap();
    }
    assert!(made.lines().count() > 200, "the page is too short to be all of it");
    let same = read(PAGE) == made;
    assert!(
        same,
        "{PAGE} is not what config/faregate.toml says: FAREGATE_WRITE_DOCS=1 cargo test --test it docs::reference"
    );
}
