//! One function per command.

mod auth;
mod completion;
mod doctor;
mod dry_run;
mod fine_tuning;
mod inference;
mod ledger;
mod man_pages;
mod network;
mod quote;
mod serve;
mod storage;
mod task;
mod walk;

use crate::app::App;
use crate::args::Command;
use crate::exit_code::{OK, Outcome};

/// Runs a command and returns its exit code.
pub(crate) async fn run(app: &App, command: Command) -> Outcome<u8> {
    if app.global.dry_run {
        return dry_run::run(app, &command).await;
    }
    dry_run::announce(app, &command).await?;
    match command {
        Command::SetupNetwork(arguments) => network::setup(app, &arguments).await?,
        Command::ShowNetwork => network::show(app).await?,
        Command::Login(arguments) => auth::login(app, &arguments).await?,
        Command::Logout => auth::logout(app)?,
        Command::Status => auth::status(app).await?,
        Command::Deposit(amount) => ledger::deposit(app, amount.amount).await?,
        Command::AddAccount(amount) => ledger::add_account(app, amount.amount).await?,
        Command::GetAccount => ledger::get_account(app).await?,
        Command::GetSubAccount(account) => ledger::get_sub_account(app, &account).await?,
        Command::TransferFund(transfer) => ledger::transfer_fund(app, &transfer).await?,
        Command::RetrieveFund(retrieve) => ledger::retrieve_fund(app, &retrieve).await?,
        Command::Refund(amount) => ledger::refund(app, amount.amount).await?,
        Command::FineTuning(command) => return fine_tuning::run(app, command).await,
        Command::Inference(command) => return inference::run(app, command).await,
        Command::Storage(command) => storage::run(app, command).await?,
        Command::Doctor { provider } => return doctor::run(app, provider).await,
        Command::ManPages { output_dir } => man_pages::write(app, &output_dir)?,
        Command::Completion { shell } => completion::print(shell),
    }
    Ok(OK)
}
