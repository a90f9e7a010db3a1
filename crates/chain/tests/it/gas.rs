//! Requirement G-1: the official Python client sends fixed gas limits and never estimates. And the price of every call
//! beside that of the published contracts, kept as a table in `docs/compatibility.md`.

use alloy_primitives::{Address, U256};
use zerog_chain::{ContractCall, calls};

use crate::gas_table::{self, Published, Row, published};
use crate::support::{
    FINE_TUNING, INFERENCE, LOCK_TIME_S, OWNER, PROVIDER, TEE, USER, World, fine_tuning_service,
    inference_service, milli, og, root,
};

const TASK: &str = "3f2b1c9e-8a54-4d0f-9f0e-2b7c1d5e6a90";

/// Makes the calls and notes what they cost.
struct Meter {
    world: World,
    rows: Vec<Row>,
}

impl Meter {
    /// Sends a call with the limit that the Python client grants, or that the node asks for.
    async fn send(
        &mut self,
        account: usize,
        name: &str,
        python: Option<u64>,
        published: Published,
        call: ContractCall,
    ) {
        let limit = self.world.gas_needed(account, &call);
        let receipt = self
            .world
            .send_with_gas_limit(account, call, python.unwrap_or(limit))
            .await;
        self.rows.push(Row {
            name: name.to_owned(),
            python,
            published,
            used: receipt.gas_used,
            limit,
        });
    }

    /// Notes the limit that a call would need, without making it.
    fn estimate(
        &mut self,
        account: usize,
        name: &str,
        python: u64,
        published: Published,
        call: &ContractCall,
    ) {
        let limit = self.world.gas_needed(account, call);
        self.rows.push(Row {
            name: name.to_owned(),
            python: Some(python),
            published,
            used: 0,
            limit,
        });
    }
}

/// Every call, in the order of the table.
async fn measure() -> Vec<Row> {
    let world = World::start().await;
    world.register(PROVIDER, TEE).await;
    let mut meter = Meter {
        world,
        rows: Vec::new(),
    };
    deposits_and_transfers(&mut meter).await;
    users_and_owner(&mut meter).await;
    deliverables(&mut meter).await;
    batches(&mut meter).await;
    refunds(&mut meter).await;
    services(&mut meter).await;
    let mut rows = meter.rows;
    rows.extend(leaving().await);
    rows.extend(deleting().await);
    rows
}

async fn deposits_and_transfers(meter: &mut Meter) {
    let ledger = meter.world.client(USER).addresses().ledger;
    let provider = meter.world.address(PROVIDER);
    // The very first of everything on a fresh contract is the most expensive one.
    let call = calls::ledger::add_ledger(ledger, "", og(60));
    meter
        .send(
            USER,
            "`addLedger`, first of all",
            Some(300_000),
            published(172_000, 197_000),
            call,
        )
        .await;
    let call = calls::ledger::deposit_fund(ledger, og(10));
    meter
        .send(
            3,
            "`depositFund`, creating",
            Some(200_000),
            published(154_000, 178_000),
            call,
        )
        .await;
    let call = calls::ledger::deposit_fund(ledger, og(1));
    meter
        .send(
            USER,
            "`depositFund`, top-up",
            Some(200_000),
            published(54_000, 70_000),
            call,
        )
        .await;
    let recipient = meter.world.address(4);
    let call = calls::ledger::deposit_fund_for(ledger, recipient, og(10));
    meter
        .send(
            USER,
            "`depositFundFor`, creating",
            Some(200_000),
            published(155_000, 179_000),
            call,
        )
        .await;
    let call = calls::ledger::update_additional_info(ledger, "a few words about me");
    meter
        .send(
            4,
            "`updateAdditionalInfo`, 20 bytes",
            None,
            Published::Unknown,
            call,
        )
        .await;

    for (service, name) in [(FINE_TUNING, "fine-tuning"), (INFERENCE, "inference")] {
        let transfer =
            |provider, amount| calls::ledger::transfer_fund(ledger, provider, service, amount);
        let first = format!("`transferFund`, first sub-account of all, {name}");
        meter
            .send(
                USER,
                &first,
                Some(300_000),
                published(449_000, 485_000),
                transfer(provider, og(2)),
            )
            .await;
        let other = Address::repeat_byte(0xa1);
        let next = format!("`transferFund`, another provider, {name}");
        meter
            .send(
                USER,
                &next,
                Some(300_000),
                published(449_000, 485_000),
                transfer(other, og(1)),
            )
            .await;
        // A third one, for the refunds below.
        let third = transfer(Address::repeat_byte(0xa2), og(1));
        meter.world.send(USER, third).await.unwrap();
        let next = format!("`transferFund`, another user, {name}");
        meter
            .send(
                3,
                &next,
                Some(300_000),
                published(393_000, 427_000),
                transfer(provider, og(1)),
            )
            .await;
        let top_up = format!("`transferFund`, top-up, {name}");
        meter
            .send(
                USER,
                &top_up,
                Some(300_000),
                published(104_000, 117_000),
                transfer(provider, og(1)),
            )
            .await;
    }
}

async fn users_and_owner(meter: &mut Meter) {
    let addresses = *meter.world.client(USER).addresses();
    let (ft, inf) = (addresses.fine_tuning, addresses.inference);
    let provider = meter.world.address(PROVIDER);
    for (contract, name) in [(ft, "fine-tuning"), (inf, "inference")] {
        let call = calls::serving::acknowledge_tee_signer(contract, provider, true);
        let label = format!("`acknowledgeTEESigner`, {name}");
        meter
            .send(USER, &label, Some(300_000), published(37_000, 40_000), call)
            .await;
        let call = calls::serving::revoke_tee_signer_acknowledgement(contract, provider);
        let label = format!("`revokeTEESignerAcknowledgement`, {name}");
        meter
            .send(
                OWNER,
                &label,
                Some(200_000),
                published(45_000, 45_000),
                call,
            )
            .await;
        let call = calls::serving::acknowledge_tee_signer_by_owner(contract, provider);
        let label = format!("`acknowledgeTEESignerByOwner`, {name}");
        meter
            .send(
                OWNER,
                &label,
                Some(200_000),
                published(45_000, 45_000),
                call,
            )
            .await;
    }
    let call = calls::inference::revoke_token(inf, provider, 200);
    meter
        .send(
            USER,
            "`revokeToken`",
            Some(200_000),
            published(59_000, 59_000),
            call,
        )
        .await;
    let token_ids: Vec<u8> = (0..20).collect();
    let call = calls::inference::revoke_tokens(inf, provider, &token_ids);
    meter
        .send(
            USER,
            "`revokeTokens`, 20 ids",
            Some(250_000),
            published(61_000, 61_000),
            call,
        )
        .await;
    let call = calls::inference::revoke_all_tokens(inf, provider);
    meter
        .send(
            USER,
            "`revokeAllTokens`",
            Some(200_000),
            published(59_000, 65_000),
            call,
        )
        .await;
    let call = calls::serving::update_lock_time(ft, 86_401);
    meter
        .send(OWNER, "`updateLockTime`", None, Published::Unknown, call)
        .await;
    let call = calls::serving::update_lock_time(ft, LOCK_TIME_S);
    meter.world.send(OWNER, call).await.unwrap();
    let call = calls::fine_tuning::update_penalty_percentage(ft, 29);
    meter
        .send(
            OWNER,
            "`updatePenaltyPercentage`",
            None,
            Published::Unknown,
            call,
        )
        .await;
    let call = calls::fine_tuning::update_ack_window(ft, 3_600);
    meter
        .send(OWNER, "`updateAckWindow`", None, Published::Unknown, call)
        .await;
}

async fn deliverables(meter: &mut Meter) {
    let ft = meter.world.client(USER).addresses().fine_tuning;
    let (user, provider) = (meter.world.address(USER), meter.world.address(PROVIDER));
    let deliver = |id: &str| calls::fine_tuning::add_deliverable(ft, user, id, root(id));
    meter
        .send(
            PROVIDER,
            "`addDeliverable`, first",
            None,
            published(271_471, 275_219),
            deliver(TASK),
        )
        .await;
    let call = calls::fine_tuning::acknowledge_deliverable(ft, provider, TASK);
    meter
        .send(
            USER,
            "`acknowledgeDeliverable`",
            Some(300_000),
            published(49_000, 50_000),
            call,
        )
        .await;
    // The sealed key of a real settlement has 129 bytes.
    let claim = meter
        .world
        .settlement(USER, TASK, &[7; 129], 10, milli(100));
    let call = calls::fine_tuning::settle_fees(ft, &claim);
    meter
        .send(
            PROVIDER,
            "`settleFees`, acknowledged",
            None,
            published(299_369, 325_941),
            call,
        )
        .await;
    meter.world.send(PROVIDER, deliver("second")).await.unwrap();
    meter.world.advance(3_600);
    let claim = meter.world.settlement(USER, "second", b"", 11, milli(100));
    let call = calls::fine_tuning::settle_fees(ft, &claim);
    meter
        .send(
            PROVIDER,
            "`settleFees`, penalty",
            None,
            published(151_204, 178_299),
            call,
        )
        .await;
    meter.world.send(PROVIDER, deliver("third")).await.unwrap();
    let call = calls::fine_tuning::abandon_deliverable(ft, user, "third");
    meter
        .send(
            PROVIDER,
            "`abandonDeliverable`",
            None,
            published(68_806, 69_350),
            call,
        )
        .await;
    // Fill the ring, so that the next one takes the place of the oldest.
    for number in 3..20 {
        let id = format!("3f2b1c9e-8a54-4d0f-9f0e-2b7c1d5e6a{number:02}");
        meter.world.send(PROVIDER, deliver(&id)).await.unwrap();
        let call = calls::fine_tuning::abandon_deliverable(ft, user, &id);
        meter.world.send(PROVIDER, call).await.unwrap();
    }
    let id = "3f2b1c9e-8a54-4d0f-9f0e-2b7c1d5e6a99";
    meter
        .send(
            PROVIDER,
            "`addDeliverable`, evicting",
            None,
            published(235_936, 297_634),
            deliver(id),
        )
        .await;
    let call = calls::fine_tuning::abandon_deliverable(ft, user, id);
    meter.world.send(PROVIDER, call).await.unwrap();
}

async fn batches(meter: &mut Meter) {
    let inf = meter.world.client(USER).addresses().inference;
    let mut nonce = 0;
    let measured = [
        (1, published(151_520, 175_553)),
        (10, published(429_628, 545_729)),
        (50, published(1_856_161, 2_354_004)),
    ];
    for (count, published) in measured {
        let items: Vec<_> = (0..count)
            .map(|_| {
                nonce += 1;
                let fee = U256::from(1_000_000);
                meter.world.inference_item(PROVIDER, USER, nonce, fee, TEE)
            })
            .collect();
        let call = calls::inference::settle_fees_with_tee(inf, &items);
        let items = if count == 1 {
            "item"
        } else {
            "items of one user"
        };
        let name = format!("`settleFeesWithTEE`, {count} {items}");
        meter.send(PROVIDER, &name, None, published, call).await;
    }
}

async fn refunds(meter: &mut Meter) {
    let ledger = meter.world.client(USER).addresses().ledger;
    let provider = meter.world.address(PROVIDER);
    let all = [
        provider,
        Address::repeat_byte(0xa1),
        Address::repeat_byte(0xa2),
    ];
    // Request with 1, 2 and 3 providers, collect with 1 and 3.
    let requests = [
        (
            FINE_TUNING,
            "fine-tuning",
            published(195_000, 220_000),
            published(461_000, 491_000),
            published(105_171, 135_221),
        ),
        (
            INFERENCE,
            "inference",
            published(212_000, 237_000),
            published(513_000, 543_000),
            published(122_036, 156_637),
        ),
    ];
    for (service, name, one, three, _) in requests {
        let retrieve =
            |count: usize| calls::ledger::retrieve_fund(ledger, all[..count].to_vec(), service);
        for (count, published) in [(1, one), (2, Published::Unknown)] {
            let label = format!("`retrieveFund`, {count} new, {name}");
            meter.estimate(USER, &label, 200_000, published, &retrieve(count));
        }
        let label = format!("`retrieveFund`, 3 new, {name}");
        meter
            .send(USER, &label, Some(200_000), three, retrieve(3))
            .await;
    }
    meter.world.advance(LOCK_TIME_S);
    for (service, name, _, _, collecting) in requests {
        let retrieve =
            |count: usize| calls::ledger::retrieve_fund(ledger, all[..count].to_vec(), service);
        let label = format!("`retrieveFund`, collecting 1, {name}");
        meter.estimate(USER, &label, 200_000, collecting, &retrieve(1));
        let label = format!("`retrieveFund`, collecting 3, {name}");
        meter
            .send(USER, &label, Some(200_000), Published::Unknown, retrieve(3))
            .await;
    }
    let call = calls::ledger::refund(ledger, og(1));
    meter
        .send(
            USER,
            "`refund`, part",
            Some(200_000),
            published(59_000, 77_000),
            call,
        )
        .await;
}

async fn services(meter: &mut Meter) {
    let addresses = *meter.world.client(USER).addresses();
    let (ft, inf) = (addresses.fine_tuning, addresses.inference);
    let tee = meter.world.address(TEE);
    let mut offer = fine_tuning_service(tee);
    offer.occupied = true;
    let call = calls::fine_tuning::add_or_update_service(ft, &offer, U256::ZERO);
    meter
        .send(
            PROVIDER,
            "fine-tuning `addOrUpdateService`, busy flag",
            None,
            published(90_054, 90_912),
            call,
        )
        .await;
    offer.occupied = false;
    let call = calls::fine_tuning::add_or_update_service(ft, &offer, U256::ZERO);
    meter
        .send(
            PROVIDER,
            "fine-tuning `addOrUpdateService`, busy flag taken back",
            None,
            published(68_142, 73_528),
            call,
        )
        .await;
    let mut offer = inference_service(tee);
    let call = calls::inference::add_or_update_service(inf, &offer, U256::ZERO);
    meter
        .send(
            PROVIDER,
            "inference `addOrUpdateService`, same values",
            Some(300_000),
            published(75_038, 75_647),
            call,
        )
        .await;
    offer.input_price += U256::from(1);
    let call = calls::inference::add_or_update_service(inf, &offer, U256::ZERO);
    meter
        .send(
            PROVIDER,
            "inference `addOrUpdateService`, price",
            Some(300_000),
            published(80_000, 84_000),
            call,
        )
        .await;
    offer.url = "http://another-host.example.org:8080/with/a/longer/path".to_owned();
    offer.additional_info = "{\"note\":\"changed\"}".to_owned();
    let call = calls::inference::add_or_update_service(inf, &offer, U256::ZERO);
    meter
        .send(
            PROVIDER,
            "inference `addOrUpdateService`, a longer url and other information",
            Some(300_000),
            Published::Unknown,
            call,
        )
        .await;
    let removal = calls::serving::remove_service;
    meter
        .send(
            PROVIDER,
            "`removeService`, fine-tuning",
            Some(300_000),
            published(115_000, 147_000),
            removal(ft),
        )
        .await;
    meter
        .send(
            PROVIDER,
            "`removeService`, inference",
            Some(200_000),
            published(109_000, 140_000),
            removal(inf),
        )
        .await;
    let stake = og(100);
    let call = calls::fine_tuning::add_or_update_service(ft, &fine_tuning_service(tee), stake);
    meter
        .send(
            PROVIDER,
            "fine-tuning `addOrUpdateService`, first of all",
            None,
            Published::Unknown,
            call,
        )
        .await;
    let call = calls::inference::add_or_update_service(inf, &inference_service(tee), stake);
    meter
        .send(
            PROVIDER,
            "inference `addOrUpdateService`, first of all",
            None,
            Published::Unknown,
            call,
        )
        .await;
    // A second provider: its entry makes the list longer, where the first one's made the list.
    let call = calls::fine_tuning::add_or_update_service(ft, &fine_tuning_service(tee), stake);
    meter
        .send(
            5,
            "fine-tuning `addOrUpdateService`, another provider",
            None,
            published(320_831, 325_352),
            call,
        )
        .await;
    let call = calls::inference::add_or_update_service(inf, &inference_service(tee), stake);
    meter
        .send(
            5,
            "inference `addOrUpdateService`, another provider",
            None,
            published(342_450, 347_303),
            call,
        )
        .await;
    meter
        .send(
            5,
            "`removeService`, fine-tuning, one of two",
            Some(300_000),
            published(94_412, 121_594),
            removal(ft),
        )
        .await;
    meter
        .send(
            5,
            "`removeService`, inference, one of two",
            Some(200_000),
            published(95_303, 122_716),
            removal(inf),
        )
        .await;
}

/// One sub-account in each service, with history: deliverables, revoked tokens, collected refunds.
async fn leaving() -> Vec<Row> {
    let world = World::funded().await;
    let (user, provider) = (world.address(USER), world.address(PROVIDER));
    let addresses = *world.client(USER).addresses();
    let fine_tuning = world.client(PROVIDER).fine_tuning();
    for number in 0..20_u64 {
        let id = format!("3f2b1c9e-8a54-4d0f-9f0e-2b7c1d5e6a{number:02}");
        fine_tuning
            .add_deliverable(user, &id, root(&id))
            .await
            .unwrap();
        fine_tuning.abandon_deliverable(user, &id).await.unwrap();
    }
    world
        .client(USER)
        .inference()
        .revoke_token(provider, 9)
        .await
        .unwrap();
    let ledger = world.client(USER).ledger();
    for _ in 0..2 {
        for service in [FINE_TUNING, INFERENCE] {
            ledger.retrieve_fund(&[provider], service).await.unwrap();
        }
        world.advance(LOCK_TIME_S);
    }
    assert_eq!(world.ledger(USER).await, (og(50), og(50)));
    let mut meter = Meter {
        world,
        rows: Vec::new(),
    };
    let leave = calls::ledger::refund(addresses.ledger, og(50));
    // The published number is for one sub-account.
    meter
        .send(
            USER,
            "`refund` of everything, a sub-account in each service, 20 deliverables",
            Some(200_000),
            published(238_000, 243_000),
            leave,
        )
        .await;
    let client = meter.world.client(USER);
    assert_eq!(client.ledger().account(user).await.unwrap(), None);
    assert!(
        !client
            .fine_tuning()
            .account_exists(user, provider)
            .await
            .unwrap()
    );
    assert!(
        !client
            .inference()
            .account_exists(user, provider)
            .await
            .unwrap()
    );
    meter.rows
}

/// A ledger that settlements spent to the last neuron.
async fn deleting() -> Vec<Row> {
    let world = World::start().await;
    world.register(PROVIDER, TEE).await;
    let ledger = world.client(3).ledger();
    ledger.add_ledger(og(3), "").await.unwrap();
    ledger
        .transfer_fund(world.address(PROVIDER), FINE_TUNING, og(1))
        .await
        .unwrap();
    ledger
        .transfer_fund(world.address(PROVIDER), INFERENCE, og(2))
        .await
        .unwrap();
    let item = world.inference_item(PROVIDER, 3, 1, og(2), TEE);
    world
        .client(PROVIDER)
        .inference()
        .settle_fees_with_tee(&[item])
        .await
        .unwrap();
    let fine_tuning = world.client(PROVIDER).fine_tuning();
    fine_tuning
        .add_deliverable(world.address(3), "t", root("t"))
        .await
        .unwrap();
    world
        .client(3)
        .fine_tuning()
        .acknowledge_deliverable(world.address(PROVIDER), "t")
        .await
        .unwrap();
    fine_tuning
        .settle_fees(&world.settlement(3, "t", b"key", 1, og(1)))
        .await
        .unwrap();
    let call = calls::ledger::delete_ledger(ledger.address());
    let mut meter = Meter {
        world,
        rows: Vec::new(),
    };
    // The published number is for one sub-account.
    meter
        .send(
            3,
            "`deleteLedger`, a sub-account in each service",
            Some(200_000),
            published(175_000, 224_000),
            call,
        )
        .await;
    meter.rows
}

/// Each call is cheaper than the published one and fits into what the Python client grants, and the table says so.
#[tokio::test]
async fn every_call_is_cheaper_than_published_and_the_table_is_up_to_date() {
    let rows = measure().await;
    let problems: Vec<String> = rows.iter().filter_map(Row::problem).collect();
    let table = gas_table::text(&rows);
    println!("{table}");
    assert!(problems.is_empty(), "{problems:#?}");

    gas_table::compare_or_write(&table);
}

/// The estimate covers the deletions: a client that adds no margin loses none of them.
#[tokio::test]
async fn the_estimate_of_leaving_covers_every_deletion() {
    let world = World::funded().await;
    let (user, provider) = (world.address(USER), world.address(PROVIDER));
    let ledger = world.client(USER).ledger();
    ledger
        .update_additional_info(&"a long text about me; ".repeat(100))
        .await
        .unwrap();
    ledger
        .transfer_fund(Address::repeat_byte(0xb1), FINE_TUNING, og(1))
        .await
        .unwrap();
    for _ in 0..2 {
        ledger
            .retrieve_fund(&[provider, Address::repeat_byte(0xb1)], FINE_TUNING)
            .await
            .unwrap();
        ledger.retrieve_fund(&[provider], INFERENCE).await.unwrap();
        world.advance(LOCK_TIME_S);
    }
    let leave = calls::ledger::refund(ledger.address(), og(50));
    let needed = world.gas_needed(USER, &leave);
    world.send_with_gas_limit(USER, leave, needed).await;
    assert_eq!(ledger.account(user).await.unwrap(), None);
    assert!(
        world
            .client(USER)
            .fine_tuning()
            .accounts()
            .await
            .unwrap()
            .is_empty()
    );
    assert!(
        !world
            .client(USER)
            .inference()
            .account_exists(user, provider)
            .await
            .unwrap()
    );
    assert!(
        ledger
            .providers(user, FINE_TUNING)
            .await
            .unwrap()
            .is_empty()
    );
}
