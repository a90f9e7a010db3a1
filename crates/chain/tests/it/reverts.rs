//! Published revert data, byte for byte: clients tell errors apart by it.

use zerog_chain::{ChainError, calls};

use crate::support::{FINE_TUNING, PROVIDER, TEE, USER, World, milli, og, root};

const ID: &str = "3f2b1c9e-8a54-4d0f-9f0e-2b7c1d5e6a90";

/// What the contract answered, in hexadecimal.
fn data<T: std::fmt::Debug>(result: Result<T, ChainError>) -> String {
    let error = result.expect_err("the contract should refuse");
    let reason = error.contract_error();
    let reason = reason.unwrap_or_else(|| panic!("not a refusal: {error}"));
    alloy_primitives::hex::encode(&reason.data)
}

#[tokio::test]
async fn refusals_have_the_published_bytes() {
    let world = World::start().await;
    let (user, provider) = (world.address(USER), world.address(PROVIDER));
    let ledger = world.client(USER).ledger();
    let fine_tuning = world.client(PROVIDER).fine_tuning();
    assert_eq!(
        data(ledger.refund(og(1)).await),
        "7d2d536b000000000000000000000000f39fd6e51aad88f6f4ce6ab8827279cfffb92266"
    );
    assert_eq!(
        data(fine_tuning.add_deliverable(user, ID, root(ID)).await),
        "08ca03ac000000000000000000000000f39fd6e51aad88f6f4ce6ab8827279cfffb922660000000000000000000000003c44cdddb6a900fa2b585dd299e03d12fa4293bc"
    );
    ledger.add_ledger(og(50), "").await.unwrap();
    world.register(PROVIDER, TEE).await;
    assert_eq!(
        data(ledger.transfer_fund(provider, FINE_TUNING, og(0)).await),
        "54443ec400000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000de0b6b3a7640000"
    );
    let inference = world.client(USER).addresses().inference;
    let call = calls::ledger::register_service(ledger.address(), "a", "b", inference, "");
    assert_eq!(
        data(world.send(3, call).await),
        "08c379a0000000000000000000000000000000000000000000000000000000000000002000000000000000000000000000000000000000000000000000000000000000204f776e61626c653a2063616c6c6572206973206e6f7420746865206f776e6572"
    );

    ledger
        .transfer_fund(provider, FINE_TUNING, og(2))
        .await
        .unwrap();
    let acknowledged = world.client(USER).fine_tuning();
    acknowledged
        .acknowledge_tee_signer(provider, true)
        .await
        .unwrap();
    fine_tuning
        .add_deliverable(user, ID, root(ID))
        .await
        .unwrap();
    assert_eq!(
        data(
            fine_tuning
                .add_deliverable(user, "next", root("next"))
                .await
        ),
        "6a3720720000000000000000000000000000000000000000000000000000000000000020000000000000000000000000000000000000000000000000000000000000002433663262316339652d386135342d346430662d396630652d32623763316435653661393000000000000000000000000000000000000000000000000000000000"
    );
    acknowledged
        .acknowledge_deliverable(provider, ID)
        .await
        .unwrap();
    let first = world.settlement(USER, ID, b"key", 7, milli(100));
    fine_tuning.settle_fees(&first).await.unwrap();
    fine_tuning
        .add_deliverable(user, "next", root("next"))
        .await
        .unwrap();
    acknowledged
        .acknowledge_deliverable(provider, "next")
        .await
        .unwrap();
    let again = world.settlement(USER, "next", b"key", 7, milli(100));
    assert_eq!(
        data(fine_tuning.settle_fees(&again).await),
        "de83c5430000000000000000000000000000000000000000000000000000000000000020000000000000000000000000000000000000000000000000000000000000002a6e6f6e63652073686f756c64206c6172676572207468616e207468652063757272656e74206e6f6e636500000000000000000000000000000000000000000000"
    );
}
