//! The commands that ask something: each is one call of the admin API.

use http::Method;
use serde::Serialize;

use super::admin::{self, Admin, Call};
use super::{
    Command, EventsCommand, GrantArgs, KeyCommand, NotifyCommand, PageArgs, ReportArgs, UserCommand, audit, backup,
    notify, show,
};
use crate::config::Config;
use crate::credits::Credits;
use crate::error::{Exit, Failure};
use crate::ledger::AccountId;
use crate::serve::data_dir::DataDir;
use crate::store;

/// What only one of the commands prints.
enum View {
    All,
    /// The user's credits alone.
    Credits,
    /// As it came: no JSON.
    Csv,
}

pub(super) fn run(config: Config, command: Command, json: bool) -> Result<(), Failure> {
    // What a start warns of is not what was asked.
    let quiet = crate::config::Log { level: "error".to_owned(), ..config.log.clone() };
    crate::telemetry::init(&quiet).map_err(Failure::while_doing(Exit::Internal, "logs"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Failure::while_doing(Exit::Internal, "the runtime"))?;
    runtime.block_on(async {
        match command {
            Command::Health => show::text(&admin::health(&config).await?),
            Command::Notify(NotifyCommand::Test) => notify::test(&config).await,
            Command::Migrate => migrate(&config).await,
            Command::Backup { file } => backup::back_up(&config, file).await,
            Command::Restore { file } => backup::restore(&config, file).await,
            Command::Audit(arguments) => audit::run(config, arguments, json).await,
            Command::Report(arguments) => {
                let view = if arguments.csv.is_some() { View::Csv } else { View::All };
                ask(config, report(&arguments), json, view).await
            }
            Command::Balance { user } => ask(config, get(user_path(&user, "")), json, View::Credits).await,
            other => ask(config, call(other)?, json, View::All).await,
        }
    })
}

async fn ask(config: Config, call: Call, json: bool, view: View) -> Result<(), Failure> {
    let admin = Admin::find(config).await?;
    let answered = admin.call(call).await;
    // What was done must be written down before the process ends, whatever the answer.
    admin.close().await?;
    let body = answered?;
    match (view, json) {
        (View::All, true) | (View::Csv, _) => show::text(&body),
        (View::All, false) if body.is_empty() => show::text("done"),
        (View::All, false) => show::text(&tree(&body)?.text()),
        (View::Credits, true) => show::text(&credits_alone(&body)?),
        (View::Credits, false) => show::text(&tree(&credits_alone(&body)?)?.text()),
    }
}

fn tree(body: &str) -> Result<show::Tree, Failure> {
    show::Tree::parse(body).map_err(Failure::while_doing(Exit::Internal, "the answer"))
}

/// Cut out as text: amounts stay as they were written.
fn credits_alone(body: &str) -> Result<String, Failure> {
    #[derive(serde::Deserialize)]
    struct User {
        credits: Box<serde_json::value::RawValue>,
    }
    let user: User = serde_json::from_str(body).map_err(Failure::while_doing(Exit::Internal, "the answer"))?;
    Ok(user.credits.get().to_owned())
}

async fn migrate(config: &Config) -> Result<(), Failure> {
    // The SQLite file has one process at a time; Postgres guards its own schema.
    let _locked = if config.store.url.is_empty() { Some(DataDir::open(&config.data_dir)?) } else { None };
    let unavailable = |error: store::StoreError| Failure::new(Exit::Unavailable, error.to_string());
    let store = store::connect(&config.store, &config.data_dir).await.map_err(unavailable)?;
    match store.migrate().await.map_err(unavailable)? {
        0 => show::text("the schema is up to date"),
        count => show::text(&format!("{count} migrations ran; the schema is up to date")),
    }
}

fn call(command: Command) -> Result<Call, Failure> {
    match command {
        Command::User(command) => user(command),
        Command::Key(command) => key(command),
        Command::Grant(arguments) => grant(arguments),
        Command::Events(command) => Ok(events(command)),
        Command::Usage { user, page } => Ok(get(paged(user_path(&user, "/usage"), &page))),
        _ => Err(Failure::new(Exit::Internal, "this command asks nothing")),
    }
}

fn user(command: UserCommand) -> Result<Call, Failure> {
    #[derive(Serialize)]
    struct New {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<AccountId>,
        #[serde(skip_serializing_if = "Option::is_none")]
        email: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        plan: Option<String>,
    }
    match command {
        UserCommand::Create { id, email, plan } => post("/admin/v1/users".into(), &New { id, email, plan }),
        UserCommand::Show { id } => Ok(get(user_path(&id, ""))),
        UserCommand::List { page } => Ok(get(paged("/admin/v1/users".into(), &page))),
        UserCommand::Freeze { id } => Ok(Call { method: Method::POST, path: user_path(&id, "/freeze"), body: None }),
        UserCommand::Unflag { id } => Ok(delete(user_path(&id, "/flag"))),
        UserCommand::Unfreeze { id } => Ok(delete(user_path(&id, "/freeze"))),
    }
}

fn report(arguments: &ReportArgs) -> Call {
    let mut path = format!("/admin/v1/reports/{}?", arguments.report);
    for (name, value) in [("from", &arguments.from), ("to", &arguments.to), ("table", &arguments.csv)] {
        if let Some(value) = value {
            path.push_str(&format!("{name}={}&", escaped(value)));
        }
    }
    path.pop();
    get(path)
}

fn events(command: EventsCommand) -> Call {
    match command {
        EventsCommand::List { state, user, page } => {
            let mut path = paged("/admin/v1/events".into(), &page);
            for (name, value) in [("state", state), ("user", user.map(|user| user.to_string()))] {
                if let Some(value) = value {
                    path = format!("{path}&{name}={}", escaped(&value));
                }
            }
            get(path)
        }
        EventsCommand::Show { id } => get(format!("/admin/v1/events/{}", escaped(&id))),
        EventsCommand::Replay { id } => {
            Call { method: Method::POST, path: format!("/admin/v1/events/{}/replay", escaped(&id)), body: None }
        }
    }
}

fn key(command: KeyCommand) -> Result<Call, Failure> {
    #[derive(Serialize)]
    struct New {
        name: String,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        test: bool,
    }
    let keys = |user: Option<AccountId>| match user {
        Some(user) => user_path(&user, "/keys"),
        None => "/admin/v1/keys".to_owned(),
    };
    match command {
        KeyCommand::Create { user, name, test, service: _ } => post(keys(user), &New { name, test }),
        KeyCommand::List { user, service: _ } => Ok(get(keys(user))),
        KeyCommand::Revoke { user, id, service: _ } => Ok(delete(format!("{}/{}", keys(user), escaped(&id)))),
    }
}

fn grant(arguments: GrantArgs) -> Result<Call, Failure> {
    #[derive(Serialize)]
    struct New {
        amount: Credits,
        #[serde(skip_serializing_if = "Option::is_none")]
        kind: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        expires_at: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        note: Option<String>,
    }
    let GrantArgs { user, amount, kind, expires_at, note } = arguments;
    post(user_path(&user, "/grants"), &New { amount, kind, expires_at, note })
}

/// Ids hold nothing that a path would read otherwise.
fn user_path(user: &AccountId, rest: &str) -> String {
    format!("/admin/v1/users/{user}{rest}")
}

fn paged(path: String, page: &PageArgs) -> String {
    let cursor = page.cursor.as_deref().map(|cursor| format!("&cursor={}", escaped(cursor))).unwrap_or_default();
    format!("{path}?limit={}{cursor}", page.limit)
}

pub(super) fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

pub(super) fn get(path: String) -> Call {
    Call { method: Method::GET, path, body: None }
}

fn delete(path: String) -> Call {
    Call { method: Method::DELETE, path, body: None }
}

pub(super) fn post(path: String, body: &impl Serialize) -> Result<Call, Failure> {
    let body = serde_json::to_string(body).map_err(Failure::while_doing(Exit::Internal, "the question"))?;
    Ok(Call { method: Method::POST, path, body: Some(body) })
}
