//! The command line: what is asked, and who answers it.

mod admin;
mod audit;
mod backup;
mod check;
mod commands;
mod notify;
mod online;
mod show;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{CONFIG_FILE, Config};
use crate::credits::Credits;
use crate::error::{Exit, Failure};
use crate::ledger::AccountId;
use crate::serve;

const ABOUT: &str = "A gateway in front of an AI service that reserves, meters and settles credits for every request";

const EXAMPLES: &str = "\
Examples:
  faregate                                      start; the first start makes a demo user and prints how to call
  FAREGATE_UPSTREAM_URL=https://api.openai.com FAREGATE_UPSTREAM_API_KEY=sk-… faregate
                                                start in front of a real service
  faregate demo --stripe                        the same with a built-in Stripe: buy a plan or a pack, pay, see the credits
  faregate check --config faregate.toml         tell what would run, or what is wrong with the settings
  faregate user create ann                      a user on plan `free`, with its credits
  faregate key create ann                       an API key of hers, shown once
  faregate grant ann 10 --note 'sorry for the outage'
  faregate usage ann --json
  faregate report revenue --from 2026-01-01 --csv months
  faregate audit                                prove the books of every account

Commands about users ask the running gateway through its admin listener, whose address lies in the data directory; when
none runs they open the store themselves. Every setting, with its default: config/faregate.toml, or `faregate check
--defaults`.

Exit codes: 0 done; 1 refused, such as an unknown user; 2 an audit found books that differ; 64 wrong settings or arguments; 69 something cannot be reached;
70 a mistake of ours; 73 the data directory cannot be written; 75 the data directory is in use.";

#[derive(Debug, Parser)]
#[command(name = "faregate", version, about = ABOUT, after_help = EXAMPLES, max_term_width = 120)]
pub struct Cli {
    /// Settings that differ from the built-in ones (TOML)
    #[arg(long, global = true, value_name = "FILE", env = CONFIG_FILE)]
    config: Option<PathBuf>,
    /// Print answers as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the gateway (what bare `faregate` does)
    Serve,
    /// Start the gateway to look around: with an upstream, a user and a key that are built in
    Demo {
        /// With a Stripe that is built in, too: from a checkout to credits without an account there
        ///
        /// Everything is in a temporary folder and gone at the end.
        #[arg(long)]
        stripe: bool,
    },
    /// Validate the settings and tell what would run
    Check {
        /// Print every setting with its default and a word about it, and do nothing else
        #[arg(long)]
        defaults: bool,
        /// Compare plans and packs with their prices at Stripe, too
        #[arg(long, conflicts_with = "defaults")]
        online: bool,
    },
    /// Ask the gateway with these settings whether it is ready
    Health,
    /// Bring the store's schema up to date, then end
    Migrate,
    /// Create, show, list, freeze and unfreeze users
    #[command(subcommand)]
    User(UserCommand),
    /// Create, list and revoke API keys
    #[command(subcommand)]
    Key(KeyCommand),
    /// List, show and replay what Stripe told
    #[command(subcommand)]
    Events(EventsCommand),
    /// Try the way to the product's backend (notify.webhook)
    #[command(subcommand)]
    Notify(NotifyCommand),
    /// Give a user credits
    Grant(GrantArgs),
    /// Show a user's credits, live from the ledger
    Balance {
        #[arg(value_parser = AccountId::parse)]
        user: AccountId,
    },
    /// Prove the books of every account, in the store and against the ledger, while the gateway runs
    ///
    /// Prints what differs, and then ends with code 2.
    Audit(audit::AuditArgs),
    /// Print a report over everybody: usage or revenue
    Report(ReportArgs),
    /// Copy the store of the embedded mode into a new file, while the gateway runs
    Backup { file: PathBuf },
    /// Put a copy made by `backup` where the store was, while no gateway runs
    Restore { file: PathBuf },
    /// List what a user used, newest first
    Usage {
        #[arg(value_parser = AccountId::parse)]
        user: AccountId,
        #[command(flatten)]
        page: PageArgs,
    },
}

#[derive(Debug, Subcommand)]
enum NotifyCommand {
    /// Send one signed message that tells nothing, and say what came of it
    Test,
}

#[derive(Debug, Subcommand)]
enum UserCommand {
    /// Create a user with the plan's sign-up credits
    Create {
        /// 1 to 128 characters of A-Z a-z 0-9 . _ @ : + -; made up when not given
        #[arg(value_parser = AccountId::parse)]
        id: Option<AccountId>,
        #[arg(long)]
        email: Option<String>,
        /// A name in [plans]; `free` when not given
        #[arg(long)]
        plan: Option<String>,
    },
    /// Show a user with credits and grants
    Show {
        #[arg(value_parser = AccountId::parse)]
        id: AccountId,
    },
    /// List users
    List {
        #[command(flatten)]
        page: PageArgs,
    },
    /// Refuse a user's new requests; what is in flight is settled
    Freeze {
        #[arg(value_parser = AccountId::parse)]
        id: AccountId,
    },
    /// Make usable again what a fraud warning froze, once you have looked into it
    Unflag {
        #[arg(value_parser = AccountId::parse)]
        id: AccountId,
    },
    /// Let a frozen user in again
    Unfreeze {
        #[arg(value_parser = AccountId::parse)]
        id: AccountId,
    },
}

#[derive(Debug, Subcommand)]
enum EventsCommand {
    /// List events, newest first
    List {
        /// pending, processed, ignored or parked
        #[arg(long, value_parser = ["pending", "processed", "ignored", "parked"])]
        state: Option<String>,
        /// Only of this user
        #[arg(long, value_parser = AccountId::parse)]
        user: Option<AccountId>,
        #[command(flatten)]
        page: PageArgs,
    },
    /// Show an event with its payload
    Show { id: String },
    /// Process an event once more, now
    Replay { id: String },
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Create a key and show it, once
    Create {
        /// Whose key it is
        #[arg(value_parser = AccountId::parse, required_unless_present = "service", conflicts_with = "service")]
        user: Option<AccountId>,
        /// A key for your own servers, which name the user in x-faregate-user
        #[arg(long)]
        service: bool,
        /// What people recognise it by
        #[arg(long, default_value = "cli")]
        name: String,
        /// A fg_test_… key
        #[arg(long, conflicts_with = "service")]
        test: bool,
    },
    /// List a user's keys, or the service keys
    List {
        #[arg(value_parser = AccountId::parse, required_unless_present = "service", conflicts_with = "service")]
        user: Option<AccountId>,
        #[arg(long)]
        service: bool,
    },
    /// Revoke a key, by its id; it ends within a second, everywhere
    Revoke {
        #[arg(value_parser = AccountId::parse, required_unless_present = "service", conflicts_with = "service")]
        user: Option<AccountId>,
        #[arg(long)]
        service: bool,
        /// The key's id, from `key list`
        #[arg(long = "id", value_name = "KEY_ID")]
        id: String,
    },
}

#[derive(Debug, Args)]
struct GrantArgs {
    #[arg(value_parser = AccountId::parse)]
    user: AccountId,
    /// Credits, such as 10 or 0.25
    #[arg(value_parser = amount)]
    amount: Credits,
    /// free, plan, topup, promo or adjust
    #[arg(long)]
    kind: Option<String>,
    /// When what is left of it lapses, such as 2030-01-31T00:00:00Z
    #[arg(long)]
    expires_at: Option<String>,
    /// Why, for the record
    #[arg(long)]
    note: Option<String>,
}

#[derive(Debug, Args)]
struct ReportArgs {
    #[arg(value_parser = ["usage", "revenue"])]
    report: String,
    /// First day, UTC, such as 2026-01-31; 30 days ago when not given
    #[arg(long)]
    from: Option<String>,
    /// First day that is not in it; tomorrow when not given
    #[arg(long)]
    to: Option<String>,
    /// Print one table as CSV: days, plans, models or near_limit of usage; months, mrr or credits of revenue
    #[arg(long, value_name = "TABLE", conflicts_with = "json")]
    csv: Option<String>,
}

#[derive(Debug, Args)]
struct PageArgs {
    /// How many, 1 to 500
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
    limit: u32,
    /// Where the page before ended
    #[arg(long)]
    cursor: Option<String>,
}

fn amount(text: &str) -> Result<Credits, String> {
    let credits: Credits = text.parse().map_err(|error: crate::credits::CreditsError| error.to_string())?;
    if credits.is_zero() { Err("must be above 0".to_owned()) } else { Ok(credits) }
}

/// Reads the arguments. Ends the process after `--help`, `--version` and arguments that make no sense.
pub fn parse() -> Cli {
    Cli::try_parse().unwrap_or_else(|error| {
        // A broken pipe is no reason to say more.
        let _ = error.print();
        std::process::exit(if error.use_stderr() { Exit::Settings as i32 } else { 0 })
    })
}

/// Does what was asked.
pub fn run(cli: Cli) -> Result<(), Failure> {
    if let Some(Command::Check { defaults: true, .. }) = cli.command {
        return show::text(crate::config::BUILT_IN);
    }
    let variables = std::env::vars_os().filter_map(|(name, value)| {
        // A value that is no text cannot be a setting; an unreadable name cannot begin with ours.
        Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
    });
    let config = Config::load(cli.config.as_deref(), variables)?;
    match cli.command {
        None | Some(Command::Serve | Command::Demo { stripe: false }) => serve::run(config, cli.config),
        Some(Command::Demo { stripe: true }) => serve::run_with_stripe(config),
        Some(Command::Check { online: true, .. }) => {
            show::text(&check::describe(&config))?;
            online::check(config)
        }
        Some(Command::Check { .. }) => show::text(&check::describe(&config)),
        Some(command) => commands::run(config, command, cli.json),
    }
}
