//! The command line: one file per command. Nothing else in pgvault prints.

pub mod args;
mod ask_prefetcher;
mod backup;
mod backup_delete;
mod backup_pin;
mod backup_verify;
mod check;
mod completions;
mod config;
mod context;
mod demo;
mod key;
mod logging;
mod not_available;
mod output;
mod progress;
mod recover;
mod repo;
mod serve;
mod slot;
mod source;
mod standby;
mod status;
mod wal;
mod wal_fetch;
mod wal_verify;
mod window;

use std::any::Any;
use std::ffi::OsString;
use std::panic;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::config::Variables;
use crate::error::{Error, ErrorCode};
use crate::repository::layout::MarkKind;
use tokio::runtime::Runtime;

use crate::daemon::signals::{Signals, Stop};
use args::{Backup, Cli, Command, Config, Key, Repo, Slot, Standby, Wal};
use context::Context;
use output::Output;

/// What a command may end with besides an error: most end with 0, `wal fetch` and `check` have codes of their own.
type Ended = Result<u8, Error>;

/// `wal fetch` failed in a way that must stop recovery instead of ending it: PostgreSQL takes 1 to 125 for "no more WAL"
/// and promotes (xlogarchive.c, `RestoreArchivedFile`); above that it stops.
const FETCH_FAILED: u8 = 255;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let is_fetch = names_wal_fetch(&args);
    hide_stack_traces();
    if is_fetch && let Ok(Some(code)) = panic::catch_unwind(|| ask_prefetcher::try_to_serve(&args)) {
        return ExitCode::from(code);
    }
    let ended = panic::catch_unwind(|| run(args)).unwrap_or_else(|panic| {
        let output = Output::new(false, false, true, |_| None);
        output.error(&internal_error(panic.as_ref()));
        ErrorCode::Unclassified.exit_code()
    });
    let code = if is_fetch && ended > 1 { FETCH_FAILED } else { ended };
    ExitCode::from(code)
}

fn run(args: Vec<OsString>) -> u8 {
    let is_fetch = names_wal_fetch(&args);
    let wants_json = args.iter().any(|arg| arg == "--json");
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, wants_json, is_fetch),
    };
    let variables = Variables::of_process();
    let variable = |name: &str| variables.get(name).map(str::to_owned);
    let output = Output::new(cli.global.json || wants_json, cli.global.quiet, cli.global.no_color, variable);
    let context = Context::new(cli.global, output, variables);
    let ended = start_runtime().and_then(|runtime| {
        let ended = runtime.block_on(dispatch(&context, cli.command));
        // What still runs in the background (a request that nobody waits for any more) must not hold up the end.
        runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(code) => code,
        Err(error) => {
            output.error(&error);
            if is_fetch { FETCH_FAILED } else { error.code().exit_code() }
        }
    }
}

fn start_runtime() -> Result<Runtime, Error> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::new(ErrorCode::Unclassified, "cannot start").because(error))
}

async fn dispatch(context: &Context, command: Command) -> Ended {
    if !matches!(command, Command::Serve(_)) {
        logging::start_client(context.global.verbose, context.global.quiet)?;
        // These have something to take away first.
        if !matches!(command, Command::Demo(_) | Command::Wal(Wal::Prefetch(_))) {
            end_when_interrupted(context.output)?;
        }
    }
    match command {
        Command::Serve(args) => serve::run(context, &args).await,
        Command::Demo(args) => demo::run(context, &args).await,
        Command::Status(of) => status::run(context, &of).await,
        Command::Check(args) => check::run(context, &args).await,
        Command::Window(args) => window::run(context, &args).await,
        Command::Health(args) => check::health(context, &args).await,
        Command::Backup(Backup::Now(args)) => backup::now(context, &args).await,
        Command::Backup(Backup::List(of)) => backup::list(context, &of).await,
        Command::Backup(Backup::Show { id }) => backup::show(context, &id).await,
        Command::Recover(args) => recover::run(context, &args).await,
        Command::Wal(Wal::Fetch(args)) | Command::WalFetch(args) => wal_fetch::fetch(context, &args).await,
        Command::Wal(Wal::Prefetch(args)) => wal_fetch::prefetch(context, &args).await,
        Command::Wal(Wal::List(of)) => wal::list(context, &of).await,
        Command::Wal(Wal::Gaps(of)) => wal::gaps(context, &of).await,
        Command::Wal(Wal::Switch(of)) => wal::switch(context, &of).await,
        Command::Wal(Wal::Verify(args)) => wal_verify::run(context, &args).await,
        Command::Slot(Slot::Show(of)) => slot::show(context, &of).await,
        Command::Slot(Slot::Create(of)) => slot::create(context, &of).await,
        Command::Slot(Slot::Drop(of)) => slot::drop(context, &of).await,
        Command::Repo(Repo::Init) => repo::init(context).await,
        Command::Repo(Repo::Check(args)) => repo::check(context, &args).await,
        Command::Key(command) => match command {
            Key::Init { file } => key::init(context, file),
            Key::Rotate => key::rotate(context).await,
            Key::List => key::list(context).await,
        },
        Command::Config(command) => match command {
            Config::Check => config::check(context),
            Config::Show => config::show(context),
            Config::Init => config::init(context),
            Config::Schema(_) => not_available::command("config schema"),
        },
        Command::Completions { shell } => completions::completions(context, shell),
        Command::Man { dir } => completions::man(context, &dir),
        Command::Version => completions::version(context),
        Command::Backup(Backup::Verify(args)) => backup_verify::run(context, &args).await,
        Command::Backup(Backup::Keep(args)) => backup_pin::run(context, &args, MarkKind::Keep).await,
        Command::Backup(Backup::Release(args)) => backup_pin::run(context, &args, MarkKind::Release).await,
        Command::Backup(Backup::Delete(args)) => backup_delete::run(context, &args).await,
        Command::Repo(Repo::Stats(of)) => repo::stats(context, &of).await,
        Command::Repo(Repo::Copy(_)) => not_available::command("repo copy"),
        Command::Retention(_) => not_available::command("retention"),
        Command::Standby(Standby::Create(args)) => standby::create(context, &args).await,
        Command::Standby(Standby::Refresh(args)) => standby::bring_back(context, &args).await,
        Command::Peek(_) => not_available::command("peek"),
        Command::Drill(_) => not_available::command("drill"),
        Command::Jobs(_) => not_available::command("jobs"),
    }
}

/// A command that is interrupted says so, with 130 for INT and 143 for TERM. Nothing needs to be undone: what is written
/// gets its final name last.
fn end_when_interrupted(output: Output) -> Result<(), Error> {
    let mut signals = Signals::listen()?;
    tokio::spawn(async move {
        let code = match signals.next_stop().await {
            Stop::Interrupt => 130,
            Stop::Terminate => 143,
        };
        output.error(&Error::new(ErrorCode::Interrupted, "interrupted"));
        std::process::exit(code);
    });
    Ok(())
}

/// Help and version are data; everything else that clap refuses is an error in our form.
fn usage(error: &clap::Error, json: bool, is_fetch: bool) -> u8 {
    let output = Output::new(json, false, true, |_| None);
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        output.text(error.render().to_string().trim_end());
        return 0;
    }
    let rendered = error.render().to_string();
    output.error(&usage_error(&rendered));
    if is_fetch { FETCH_FAILED } else { ErrorCode::Usage.exit_code() }
}

/// clap's text as an error: its first line is what happened, what follows up to the usage line explains.
fn usage_error(rendered: &str) -> Error {
    let mut lines = rendered.lines().map(str::trim_end).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or("the command line cannot be understood");
    // Without a command clap prints its whole help.
    let missing_command = !first.starts_with("error: ");
    let message = if missing_command { "no command" } else { first.trim_start_matches("error: ") };
    let mut error = Error::new(ErrorCode::Usage, message);
    if missing_command {
        return error.help("pgvault --help");
    }
    let mut helps = Vec::new();
    for line in lines {
        let line = line.trim_start();
        if line.starts_with("For more information") {
            continue;
        }
        match line.strip_prefix("tip: ") {
            Some(tip) => helps.push(tip.to_owned()),
            None => error = error.because(line),
        }
    }
    helps.push("pgvault COMMAND --help".to_owned());
    helps.into_iter().fold(error, Error::help)
}

/// Whether the command is `wal fetch`, as well as can be told of a command line that may be wrong.
fn names_wal_fetch(args: &[OsString]) -> bool {
    let words: Vec<&str> = args.iter().skip(1).filter_map(|arg| arg.to_str()).collect();
    words.iter().any(|word| matches!(*word, "wal-fetch" | "get-wal" | "archive-get"))
        || words.windows(2).any(|pair| pair == ["wal", "fetch"])
        || (words.contains(&"wal") && words.contains(&"fetch"))
}

/// A panic is a fault of pgvault; it is told like any error, never as a stack trace, whatever `RUST_BACKTRACE` says.
fn hide_stack_traces() {
    panic::set_hook(Box::new(|info| {
        let at = info.location().map(|location| format!("{}:{}", location.file(), location.line()));
        tracing::error!(at, "internal error: {}", panic_text(info.payload()));
    }));
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no text".to_owned())
}

fn internal_error(panic: &(dyn Any + Send)) -> Error {
    Error::new(ErrorCode::Unclassified, "internal error: pgvault has a fault")
        .because(panic_text(panic))
        .help("report it with the command and this text; nothing was left half-written under a final name")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn a_wrong_wal_fetch_is_still_a_wal_fetch() {
        for line in ["pgvault wal fetch", "pgvault -c x wal fetch main", "pgvault get-wal", "pgvault wal --json fetch"]
        {
            assert!(names_wal_fetch(&words(line)), "{line}");
        }
        for line in ["pgvault wal list", "pgvault backup list", "pgvault"] {
            assert!(!names_wal_fetch(&words(line)), "{line}");
        }
    }

    #[test]
    fn a_usage_error_keeps_what_clap_knows() {
        let error = Cli::try_parse_from(words("pgvault backup lst")).unwrap_err();
        let error = usage_error(&error.render().to_string());
        assert_eq!(error.code(), ErrorCode::Usage);
        assert!(error.message().contains("lst"), "{error}");
        assert!(error.help_lines()[0].contains("list"), "{error}");
    }
}
