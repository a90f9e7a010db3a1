//! Money is neither made nor lost by any sequence of calls.
//!
//! Users, providers and time act at random from a seed. After every step, for every user: total =
//! available + sub-accounts, and pending refunds = the live ones; for every contract: its coins =
//! what it owes. At the end deposits = what is left + what was paid out, to the neuron.

use alloy_primitives::{Address, U256};
use alloy_sol_types::SolEvent;
use zerog_chain::{ChainClient, Receipt, bindings::LedgerManager, calls};

use crate::support::{
    FINE_TUNING, INFERENCE, LOCK_TIME_S, TEE, World, fine_tuning_digest, inference_digest, milli,
    og, root, sign,
};

const USERS: [usize; 3] = [3, 4, 5];
const PROVIDERS: [usize; 2] = [2, 6];
const STEPS: usize = 250;

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// What the money did, by the events and the values sent.
#[derive(Default)]
struct Books {
    deposited: U256,
    refunded: U256,
    spent: U256,
    accepted: usize,
    refused: usize,
}

impl Books {
    fn enter(&mut self, receipt: &Receipt) {
        for log in &receipt.logs {
            let topics = log.topics.iter().copied();
            match log.topics[0] {
                LedgerManager::FundDeposited::SIGNATURE_HASH => {
                    self.deposited +=
                        LedgerManager::FundDeposited::decode_raw_log(topics, &log.data)
                            .unwrap()
                            .amount;
                }
                LedgerManager::FundRefunded::SIGNATURE_HASH => {
                    self.refunded += LedgerManager::FundRefunded::decode_raw_log(topics, &log.data)
                        .unwrap()
                        .amount;
                }
                LedgerManager::FundSpent::SIGNATURE_HASH => {
                    self.spent += LedgerManager::FundSpent::decode_raw_log(topics, &log.data)
                        .unwrap()
                        .amount;
                }
                _ => {}
            }
        }
    }
}

struct Play {
    world: World,
    random: Random,
    books: Books,
    nonce: u64,
    /// Coins of each provider if nothing but gas and fees moved them.
    expected: Vec<U256>,
}

#[tokio::test]
async fn random_play_conserves_money() {
    for seed in [1, 2, 3] {
        let world = World::start().await;
        for provider in PROVIDERS {
            world.register(provider, TEE).await;
        }
        let mut expected = Vec::new();
        for provider in PROVIDERS {
            expected.push(
                world
                    .client(provider)
                    .balance(world.address(provider))
                    .await
                    .unwrap(),
            );
        }
        let mut play = Play {
            world,
            random: Random(seed),
            books: Books::default(),
            nonce: 1,
            expected,
        };
        for step in 0..STEPS {
            play.step().await;
            play.check(&format!("seed {seed}, step {step}")).await;
        }
        let books = &play.books;
        assert!(
            books.accepted > STEPS / 3,
            "only {} of {STEPS} steps did something",
            books.accepted
        );
        assert!(
            books.refused > 0 && !books.spent.is_zero() && !books.refunded.is_zero(),
            "a poor play: seed {seed}"
        );
    }
}

impl Play {
    async fn step(&mut self) {
        let user = self.random.pick(&USERS);
        let provider = self.random.pick(&PROVIDERS);
        let service = self.random.pick(&[FINE_TUNING, INFERENCE]);
        let amount = milli(self.random.below(6_000));
        let at = self.world.address(provider);
        let ledger = self.world.client(user).addresses().ledger;
        let fine_tuning = self.world.client(user).addresses().fine_tuning;
        match self.random.below(14) {
            0 => {
                self.send(user, calls::ledger::deposit_fund(ledger, amount))
                    .await
            }
            1 => {
                self.send(user, calls::ledger::add_ledger(ledger, "", amount))
                    .await
            }
            2..=4 => {
                self.send(
                    user,
                    calls::ledger::transfer_fund(ledger, at, service, amount),
                )
                .await
            }
            5 | 6 => {
                let all = PROVIDERS
                    .iter()
                    .map(|provider| self.world.address(*provider))
                    .collect();
                self.send(user, calls::ledger::retrieve_fund(ledger, all, service))
                    .await;
            }
            7 => {
                let account = self
                    .world
                    .client(user)
                    .ledger()
                    .account(self.world.address(user))
                    .await
                    .unwrap();
                let all = account.map_or(amount, |account| account.available_balance);
                let amount = if self.random.below(2) == 0 {
                    all
                } else {
                    amount
                };
                self.send(user, calls::ledger::refund(ledger, amount)).await;
            }
            8 => self.world.advance(self.random.below(LOCK_TIME_S)),
            9 | 10 => self.deliver(user, provider).await,
            11 => {
                let add = calls::serving::acknowledge_tee_signer(
                    fine_tuning,
                    at,
                    self.random.below(2) == 0,
                );
                self.send(user, add).await;
            }
            _ => self.settle_inference(user, provider).await,
        }
    }

    /// One deliverable through to a random end.
    async fn deliver(&mut self, user: usize, provider: usize) {
        self.nonce += 1;
        let id = format!("task-{}", self.nonce);
        let (contract, user_address) = (
            self.world.client(user).addresses().fine_tuning,
            self.world.address(user),
        );
        let add = calls::fine_tuning::add_deliverable(contract, user_address, &id, root(&id));
        self.send(provider, add).await;
        let end = self.random.below(4);
        if end == 0 {
            self.send(
                provider,
                calls::fine_tuning::abandon_deliverable(contract, user_address, &id),
            )
            .await;
            return;
        }
        let acknowledged = end == 1;
        if acknowledged {
            let at = self.world.address(provider);
            self.send(
                user,
                calls::fine_tuning::acknowledge_deliverable(contract, at, &id),
            )
            .await;
        } else {
            self.world.advance(LOCK_TIME_S / 2);
        }
        let secret: &[u8] = if acknowledged { b"key" } else { b"" };
        let fee = milli(self.random.below(3_000));
        let mut claim = self.world.settlement(user, &id, secret, self.nonce, fee);
        claim.signature = sign(TEE, fine_tuning_digest(&claim, contract));
        self.send(provider, calls::fine_tuning::settle_fees(contract, &claim))
            .await;
    }

    async fn settle_inference(&mut self, user: usize, provider: usize) {
        let contract = self.world.client(user).addresses().inference;
        let mut batch = Vec::new();
        for _ in 0..=self.random.below(3) {
            self.nonce += 1;
            let fee = milli(self.random.below(2_000));
            let mut item = self
                .world
                .inference_item(provider, user, self.nonce, fee, TEE);
            item.signature = sign(TEE, inference_digest(&item, contract));
            batch.push(item);
        }
        self.send(
            provider,
            calls::inference::settle_fees_with_tee(contract, &batch),
        )
        .await;
    }

    /// Sends, keeps the books, and takes a refusal of a contract as an answer.
    async fn send(&mut self, account: usize, call: zerog_chain::ContractCall) {
        match self.world.send(account, call).await {
            Ok(receipt) => {
                self.books.accepted += 1;
                let spent_before = self.books.spent;
                self.books.enter(&receipt);
                if let Some(index) = PROVIDERS.iter().position(|provider| *provider == account) {
                    self.expected[index] -= receipt.gas_cost();
                    self.expected[index] += self.books.spent - spent_before;
                }
            }
            Err(error) => {
                assert!(error.contract_error().is_some(), "not a refusal: {error}");
                self.books.refused += 1;
            }
        }
    }

    async fn check(&self, place: &str) {
        let client = self.world.client(0);
        let addresses = client.addresses();
        let (mut available, mut totals) = (U256::ZERO, U256::ZERO);
        let (mut in_fine_tuning, mut in_inference) = (U256::ZERO, U256::ZERO);
        for user in USERS {
            let user = self.world.address(user);
            let Some(account) = client.ledger().account(user).await.unwrap() else {
                continue;
            };
            let (fine_tuning, inference) = (
                sub_accounts(client, user, true).await,
                sub_accounts(client, user, false).await,
            );
            assert_eq!(
                account.total_balance,
                account.available_balance + fine_tuning + inference,
                "{place}"
            );
            available += account.available_balance;
            totals += account.total_balance;
            in_fine_tuning += fine_tuning;
            in_inference += inference;
        }
        let stakes = og(100) * U256::from(PROVIDERS.len());
        assert_eq!(
            client.balance(addresses.ledger).await.unwrap(),
            available,
            "ledger, {place}"
        );
        assert_eq!(
            client.balance(addresses.fine_tuning).await.unwrap(),
            in_fine_tuning + stakes,
            "fine-tuning, {place}"
        );
        assert_eq!(
            client.balance(addresses.inference).await.unwrap(),
            in_inference + stakes,
            "inference, {place}"
        );
        let books = &self.books;
        assert_eq!(
            books.deposited,
            totals + books.refunded + books.spent,
            "{place}"
        );
        for (provider, expected) in PROVIDERS.iter().zip(&self.expected) {
            let found = client.balance(self.world.address(*provider)).await.unwrap();
            assert_eq!(found, *expected, "provider {provider}, {place}");
        }
    }
}

/// Sum of a user's sub-accounts in one service, after checking their refunds.
async fn sub_accounts(client: &ChainClient, user: Address, fine_tuning: bool) -> U256 {
    let mut sum = U256::ZERO;
    for provider in PROVIDERS {
        let provider = zerog_devchain::accounts::ACCOUNTS[provider].address;
        let found = if fine_tuning {
            client
                .fine_tuning()
                .account(user, provider)
                .await
                .unwrap()
                .map(|account| (account.balance, account.pending_refund, account.refunds))
        } else {
            client
                .inference()
                .account(user, provider)
                .await
                .unwrap()
                .map(|account| (account.balance, account.pending_refund, account.refunds))
        };
        let Some((balance, pending, refunds)) = found else {
            continue;
        };
        let live: U256 = refunds.iter().map(|refund| refund.amount).sum();
        assert_eq!(pending, live);
        assert!(pending <= balance && refunds.len() <= 5);
        sum += balance;
    }
    sum
}
