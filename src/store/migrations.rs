//! The schema's steps, compiled into the program. Forward only: a step that was released is never edited.

use refinery::{Migration, Runner};

use super::{StoreError, StoreResult};

type Step = (&'static str, &'static str);

pub(super) const SQLITE: &[Step] = &[
    ("V1__foundation", include_str!("../../migrations/sqlite/V1__foundation.sql")),
    ("V2__journal", include_str!("../../migrations/sqlite/V2__journal.sql")),
    ("V3__reopenings", include_str!("../../migrations/sqlite/V3__reopenings.sql")),
    ("V4__retention", include_str!("../../migrations/sqlite/V4__retention.sql")),
    ("V5__books", include_str!("../../migrations/sqlite/V5__books.sql")),
    ("V6__billing", include_str!("../../migrations/sqlite/V6__billing.sql")),
    ("V7__identity", include_str!("../../migrations/sqlite/V7__identity.sql")),
    ("V8__notifications", include_str!("../../migrations/sqlite/V8__notifications.sql")),
    ("V9__insight", include_str!("../../migrations/sqlite/V9__insight.sql")),
    ("V10__records", include_str!("../../migrations/sqlite/V10__records.sql")),
    ("V11__topups", include_str!("../../migrations/sqlite/V11__topups.sql")),
    ("V12__pages", include_str!("../../migrations/sqlite/V12__pages.sql")),
    ("V13__days_audit", include_str!("../../migrations/sqlite/V13__days_audit.sql")),
    ("V14__notification_retention", include_str!("../../migrations/sqlite/V14__notification_retention.sql")),
];

pub(super) const POSTGRES: &[Step] = &[
    ("V1__foundation", include_str!("../../migrations/postgres/V1__foundation.sql")),
    ("V3__reopenings", include_str!("../../migrations/postgres/V3__reopenings.sql")),
    ("V4__retention", include_str!("../../migrations/postgres/V4__retention.sql")),
    ("V5__books", include_str!("../../migrations/postgres/V5__books.sql")),
    ("V6__billing", include_str!("../../migrations/postgres/V6__billing.sql")),
    ("V7__identity", include_str!("../../migrations/postgres/V7__identity.sql")),
    ("V8__notifications", include_str!("../../migrations/postgres/V8__notifications.sql")),
    ("V9__insight", include_str!("../../migrations/postgres/V9__insight.sql")),
    ("V10__records", include_str!("../../migrations/postgres/V10__records.sql")),
    ("V11__topups", include_str!("../../migrations/postgres/V11__topups.sql")),
    ("V12__pages", include_str!("../../migrations/postgres/V12__pages.sql")),
    ("V13__days_audit", include_str!("../../migrations/postgres/V13__days_audit.sql")),
    ("V14__notification_retention", include_str!("../../migrations/postgres/V14__notification_retention.sql")),
];

/// Where refinery keeps what was applied.
pub(super) const HISTORY_TABLE: &str = "refinery_schema_history";

fn known(steps: &[Step]) -> StoreResult<Vec<Migration>> {
    steps.iter().map(|(name, sql)| Migration::unapplied(name, sql)).collect::<Result<_, _>>().map_err(failed)
}

pub(super) fn runner(steps: &[Step]) -> StoreResult<Runner> {
    Ok(Runner::new(&known(steps)?))
}

/// How many steps are still to be taken. An error where the store has steps that this program does not know.
pub(super) fn pending(steps: &[Step], applied: &[Migration]) -> StoreResult<usize> {
    let known = known(steps)?;
    for migration in applied {
        let Some(ours) = known.iter().find(|candidate| candidate.version() == migration.version()) else {
            let newest = known.iter().map(Migration::version).max().unwrap_or_default();
            return Err(StoreError::Schema(format!(
                "the store's schema has version {}, this program knows versions up to {newest}: start a newer program",
                migration.version(),
            )));
        };
        if ours != migration {
            return Err(StoreError::Schema(format!("step {migration} of the store's schema is not this program's")));
        }
    }
    Ok(known.len() - applied.len())
}

/// For a program that was told not to migrate.
pub(super) fn require_none_pending(pending: usize) -> StoreResult<()> {
    if pending == 0 {
        return Ok(());
    }
    Err(StoreError::Schema(format!("the store's schema lacks {pending} steps: run `faregate migrate`")))
}

pub(super) fn failed(error: refinery::Error) -> StoreError {
    StoreError::Schema(format!("a migration failed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_a_step_in_order() {
        for (folder, steps) in [("sqlite", SQLITE), ("postgres", POSTGRES)] {
            let files = std::fs::read_dir(format!("{}/migrations/{folder}", env!("CARGO_MANIFEST_DIR"))).unwrap();
            let mut names: Vec<String> = files
                .map(|file| file.unwrap().file_name().into_string().unwrap())
                .map(|name| name.strip_suffix(".sql").unwrap().to_owned())
                .collect();
            let number = |name: &String| name[1..].split("__").next().unwrap().parse::<u32>().unwrap();
            names.sort_by_key(number);
            assert_eq!(steps.iter().map(|(name, _)| *name).collect::<Vec<_>>(), names, "{folder}");
        }
    }
}
