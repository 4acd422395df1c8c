//! Bank accounts: transfers keep the sum, in every snapshot anybody reads, local ones included.
//!
//! The workload and its checks are Jepsen's `bank` (jepsen.tests.bank): wrong total, missing account, unknown account, negative balance.

use super::order::Checked;
use super::{Finding, Verdict};
use crate::history::{F, History};

/// Judges every read of all balances.
pub fn check(history: &History) -> Checked {
    let reads: Vec<_> = history
        .operations()
        .into_iter()
        .filter(|o| *o.f() == F::Balances && o.is_ok())
        .collect();
    if reads.is_empty() {
        let any = history.ops.iter().any(|op| op.f == F::Transfer);
        let verdict = if any {
            Verdict::Unknown("no balances were read".to_owned())
        } else {
            Verdict::Pass
        };
        return (verdict, 0);
    }
    let Some((run, total)) = history.run().and_then(|run| Some((run, run.bank_total?))) else {
        return (
            Verdict::Unknown("harness: the run does not name its bank total".to_owned()),
            0,
        );
    };
    let mut findings = Vec::new();
    for read in &reads {
        let Some(accounts) = read.value().as_map() else {
            findings.push(
                Finding::new("missing-account", "a read of balances shows no accounts").of(read),
            );
            continue;
        };
        let mut sum = 0i64;
        for (account, balance) in accounts {
            let Some(balance) = balance.as_int() else {
                findings.push(
                    Finding::new(
                        "missing-account",
                        format!("account {account} has no balance"),
                    )
                    .of(read),
                );
                continue;
            };
            sum = sum.saturating_add(balance);
            if balance < 0 && !run.bank_overdraft {
                let what = format!("account {account} stands at {balance}");
                findings.push(Finding::new("negative-balance", what).of(read));
            }
            if !run.bank_accounts.is_empty() && !run.bank_accounts.contains(account) {
                findings.push(
                    Finding::new(
                        "unknown-account",
                        format!("account {account} was never opened"),
                    )
                    .of(read),
                );
            }
        }
        for account in run
            .bank_accounts
            .iter()
            .filter(|account| !accounts.contains_key(*account))
        {
            findings.push(
                Finding::new("missing-account", format!("account {account} is not there")).of(read),
            );
        }
        if sum != total {
            findings.push(
                Finding::new("wrong-total", format!("accounts sum to {sum}, not {total}")).of(read),
            );
        }
    }
    (Verdict::of(findings), reads.len() as u64)
}
