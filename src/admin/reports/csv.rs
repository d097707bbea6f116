//! Tables as comma-separated values (RFC 4180), safe to open in a spreadsheet.

use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};

/// A table with its head.
pub(super) struct Table {
    out: String,
    name: &'static str,
}

/// One value of a row.
pub(super) enum Field<'a> {
    Text(&'a str),
    /// A number that was written here, never a client's text.
    Number(String),
    None,
}

impl Table {
    pub(super) fn new(name: &'static str, head: &[&str]) -> Table {
        let mut table = Table { out: String::new(), name };
        table.row(&head.iter().map(|name| Field::Text(name)).collect::<Vec<_>>());
        table
    }

    pub(super) fn row(&mut self, fields: &[Field<'_>]) {
        let written: Vec<String> = fields.iter().map(field).collect();
        self.out.push_str(&written.join(","));
        self.out.push_str("\r\n");
    }

    #[cfg(test)]
    pub(super) fn text(&self) -> &str {
        &self.out
    }
}

fn field(field: &Field<'_>) -> String {
    let text = match field {
        Field::None => return String::new(),
        Field::Number(number) => return number.clone(),
        Field::Text(text) => *text,
    };
    // A spreadsheet takes what begins like this for a formula and runs it; clients choose models' names.
    let formula = text.trim_start().starts_with(['=', '+', '-', '@', '|', '%']) || text.starts_with(['\t', '\r', '\n']);
    let guard = if formula { "'" } else { "" };
    if formula || text.contains([',', '"', '\r', '\n']) {
        format!("\"{guard}{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

impl IntoResponse for Table {
    fn into_response(self) -> Response {
        let file = format!("attachment; filename=\"{}.csv\"", self.name);
        let mut response = (StatusCode::OK, self.out).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/csv; charset=utf-8; header=present"));
        if let Ok(file) = HeaderValue::try_from(file) {
            headers.insert(CONTENT_DISPOSITION, file);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_is_a_formula() {
        let mut table = Table::new("t", &["a", "b"]);
        table.row(&[Field::Text("=cmd|'/c calc'!A1"), Field::Number("-1".into())]);
        table.row(&[Field::Text(" @sum(1)"), Field::Text("a,\"b\"")]);
        table.row(&[Field::Text("\t=1"), Field::None]);
        table.row(&[Field::Text("gpt-4o"), Field::Text("-x")]);
        assert_eq!(
            table.text(),
            "a,b\r\n\"'=cmd|'/c calc'!A1\",-1\r\n\"' @sum(1)\",\"a,\"\"b\"\"\"\r\n\"'\t=1\",\r\ngpt-4o,\"'-x\"\r\n"
        );
    }
}
