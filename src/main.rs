//! The program: reads what is asked, does it, and ends with a code that says how it went.

use std::process::ExitCode;

use faregate::cli;

fn main() -> ExitCode {
    let command = cli::parse();
    match cli::run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("faregate: {failure}");
            failure.code()
        }
    }
}
