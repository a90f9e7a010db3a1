//! The prepaid account and the sub-accounts.

use zerog_sdk::amount::format_0g;
use zerog_sdk::{Address, Broker, Error, PendingRefund, Receipt, ServiceKind, U256};

use crate::app::{App, Wallet};
use crate::args::{RetrieveFund, SubAccount, TransferFund};
use crate::exit_code::Outcome;
use crate::output::Table;
use crate::view::{AccountOutput, LedgerOutput, ReceiptOutput, RetrievalOutput, SubAccountOutput};

pub(super) async fn deposit(app: &App, amount: U256) -> Outcome {
    let broker = app.broker(Wallet::Needed).await?;
    let receipt = broker.ledger.deposit_fund(amount).await?;
    done(
        app,
        &format!("Deposited {} 0G", format_0g(amount)),
        &receipt,
    );
    Ok(())
}

pub(super) async fn add_account(app: &App, amount: U256) -> Outcome {
    let broker = app.broker(Wallet::Needed).await?;
    let receipt = broker.ledger.add_ledger(amount).await?;
    done(
        app,
        &format!("Created the account with {} 0G", format_0g(amount)),
        &receipt,
    );
    Ok(())
}

pub(super) async fn refund(app: &App, amount: U256) -> Outcome {
    let broker = app.broker(Wallet::Needed).await?;
    let receipt = broker.ledger.refund(amount).await?;
    done(
        app,
        &format!("Paid {} 0G out to the wallet", format_0g(amount)),
        &receipt,
    );
    Ok(())
}

/// Prints what a transaction did.
pub(super) fn done(app: &App, text: &str, receipt: &Receipt) {
    app.output.line(text);
    app.output.json(&ReceiptOutput::from(receipt));
}

/// A sub-account as it is shown.
pub(super) struct SubAccountView {
    service: ServiceKind,
    provider: Address,
    balance: U256,
    pub(super) pending_refund: U256,
    pub(super) acknowledged: bool,
    refunds: Vec<PendingRefund>,
}

impl SubAccountView {
    pub(super) fn available(&self) -> U256 {
        self.balance.saturating_sub(self.pending_refund)
    }

    fn output(&self) -> SubAccountOutput {
        SubAccountOutput {
            service: self.service,
            provider: self.provider,
            balance_neuron: self.balance.to_string(),
            pending_refund_neuron: self.pending_refund.to_string(),
            available_neuron: self.available().to_string(),
            acknowledged: self.acknowledged,
            refunds: self.refunds.clone(),
        }
    }
}

pub(super) async fn get_account(app: &App) -> Outcome {
    let broker = app.broker(Wallet::Needed).await?;
    let ledger = broker.ledger.get_ledger().await?;
    let wallet_balance = broker.wallet_balance().await?;
    let mut sub_accounts = Vec::new();
    for service in [ServiceKind::FineTuning, ServiceKind::Inference] {
        for provider in broker.ledger.get_providers(service).await? {
            match sub_account(&broker, provider, service).await {
                Ok(view) => sub_accounts.push(view),
                Err(Error::AccountMissing { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    let mut table = Table::with_head(&[("Balance", 35), ("Value (0G)", 50)]);
    table.row(["Account".into(), ledger.user.to_string()]);
    table.row(["Total".into(), format_0g(ledger.total_balance)]);
    table.row([
        "Available in the ledger".into(),
        format_0g(ledger.available_balance),
    ]);
    table.row(["In sub-accounts".into(), format_0g(ledger.locked_balance())]);
    table.row(["In the wallet".into(), format_0g(wallet_balance)]);
    app.output.table(&table);
    if !sub_accounts.is_empty() {
        let mut table = Table::with_head(&[
            ("Service", 14),
            ("Provider", 45),
            ("Balance (0G)", 26),
            ("Asked back (0G)", 26),
        ]);
        for account in &sub_accounts {
            table.row([
                account.service.to_string(),
                account.provider.to_string(),
                format_0g(account.balance),
                format_0g(account.pending_refund),
            ]);
        }
        app.output.table(&table);
    }
    app.output.json(&AccountOutput {
        ledger: LedgerOutput::from(&ledger),
        wallet_balance_neuron: wallet_balance.to_string(),
        sub_accounts: sub_accounts.iter().map(SubAccountView::output).collect(),
    });
    Ok(())
}

pub(super) async fn sub_account(
    broker: &Broker,
    provider: Address,
    service: ServiceKind,
) -> zerog_sdk::Result<SubAccountView> {
    let (balance, pending_refund, acknowledged, refunds) = match service {
        ServiceKind::FineTuning => {
            let detail = broker.fine_tuning.get_account_with_detail(provider).await?;
            let account = detail.account;
            (
                account.balance,
                account.pending_refund,
                account.acknowledged,
                detail.refunds,
            )
        }
        ServiceKind::Inference => {
            let detail = broker.inference.get_account_with_detail(provider).await?;
            let account = detail.account;
            (
                account.balance,
                account.pending_refund,
                account.acknowledged,
                detail.refunds,
            )
        }
    };
    Ok(SubAccountView {
        service,
        provider,
        balance,
        pending_refund,
        acknowledged,
        refunds,
    })
}

pub(super) async fn get_sub_account(app: &App, arguments: &SubAccount) -> Outcome {
    let broker = app.broker(Wallet::Needed).await?;
    let service = which_service(app, &broker, arguments).await?;
    let view = sub_account(&broker, arguments.provider, service).await?;
    let mut table = Table::with_head(&[("Field", 35), ("Value", 50)]);
    table.row(["Service".into(), view.service.to_string()]);
    table.row(["Provider".into(), view.provider.to_string()]);
    table.row(["Balance (0G)".into(), format_0g(view.balance)]);
    table.row(["Asked back (0G)".into(), format_0g(view.pending_refund)]);
    table.row(["Available (0G)".into(), format_0g(view.available())]);
    table.row([
        "Provider acknowledged".into(),
        if view.acknowledged {
            "✓".into()
        } else {
            "✗".into()
        },
    ]);
    app.output.table(&table);
    if !view.refunds.is_empty() {
        let mut table = Table::with_head(&[("Refund (0G)", 35), ("Collectable", 50)]);
        for refund in &view.refunds {
            table.row([format_0g(refund.amount), collectable(refund.remain_time)]);
        }
        app.output.table(&table);
    }
    app.output.json(&view.output());
    Ok(())
}

fn collectable(seconds: u64) -> String {
    match seconds {
        0 => "now, with retrieve-fund".into(),
        seconds if seconds < 3600 => format!("in {} min", seconds.div_ceil(60)),
        seconds => format!(
            "in {} h {} min",
            seconds / 3600,
            (seconds % 3600).div_ceil(60)
        ),
    }
}

pub(super) async fn transfer_fund(app: &App, arguments: &TransferFund) -> Outcome {
    let broker = app.broker(Wallet::Needed).await?;
    let service = which_service(app, &broker, &arguments.account).await?;
    let provider = arguments.account.provider;
    let receipt = broker
        .ledger
        .transfer_fund(provider, service, arguments.amount)
        .await?;
    let text = format!(
        "Transferred {} 0G to the {service} sub-account with {provider}",
        format_0g(arguments.amount)
    );
    done(app, &text, &receipt);
    Ok(())
}

/// As [`service_of`]; says which when it had to choose.
async fn which_service(app: &App, broker: &Broker, arguments: &SubAccount) -> Outcome<ServiceKind> {
    let service = service_of(broker, arguments).await?;
    if arguments.service.is_none() {
        app.output
            .note(format!("Service: {service} (choose with --service)"));
    }
    Ok(service)
}

/// The service named by flag, else the provider's only one, else fine-tuning.
pub(super) async fn service_of(broker: &Broker, arguments: &SubAccount) -> Outcome<ServiceKind> {
    if let Some(service) = arguments.service {
        return Ok(service);
    }
    let exists = |outcome: zerog_sdk::Result<()>| match outcome {
        Ok(()) => Ok(true),
        Err(Error::ServiceMissing { .. }) => Ok(false),
        Err(error) => Err(error),
    };
    let fine_tuning = exists(
        broker
            .fine_tuning
            .get_service(arguments.provider)
            .await
            .map(|_| ()),
    )?;
    let inference = exists(
        broker
            .inference
            .get_service(arguments.provider)
            .await
            .map(|_| ()),
    )?;
    match (fine_tuning, inference) {
        (false, true) => Ok(ServiceKind::Inference),
        (false, false) => Err(Error::ServiceMissing {
            provider: arguments.provider,
            service: ServiceKind::FineTuning,
        }
        .into()),
        _ => Ok(ServiceKind::FineTuning),
    }
}

pub(super) async fn retrieve_fund(app: &App, arguments: &RetrieveFund) -> Outcome {
    let broker = app.broker(Wallet::Needed).await?;
    let services = match arguments.service {
        Some(service) => vec![service],
        None => vec![ServiceKind::FineTuning, ServiceKind::Inference],
    };
    let providers = arguments.provider.map(|provider| [provider]);
    let mut receipts = Vec::new();
    for service in services {
        let sent = broker
            .ledger
            .retrieve_fund(service, providers.as_ref().map(|list| &list[..]))
            .await?;
        if !sent.is_empty() {
            app.output.line(format!(
                "Asked for refunds from the {service} sub-accounts and collected unlocked ones"
            ));
        }
        receipts.extend(sent.iter().map(|receipt| RetrievalOutput {
            service,
            receipt: ReceiptOutput::from(receipt),
        }));
    }
    if receipts.is_empty() {
        app.output
            .line("There are no sub-accounts to retrieve from");
    } else {
        let hours = broker.fine_tuning.get_locked_time().await?.div_ceil(3600);
        app.output.note(format!(
            "Refunds unlock after {hours} h; run retrieve-fund again then, and refund to pay out."
        ));
    }
    app.output.json(&receipts);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_refund_is_plain() {
        assert_eq!(collectable(0), "now, with retrieve-fund");
        assert_eq!(collectable(61), "in 2 min");
        assert_eq!(collectable(86_340), "in 23 h 59 min");
    }
}
