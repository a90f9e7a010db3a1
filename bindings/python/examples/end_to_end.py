"""The whole walk: fund, upload, train, take delivery, deploy, ask.

Usage: PRIVATE_KEY=0x... python end_to_end.py DATASET PARAMETERS [NETWORK]
"""

import os
import sys

from zerog_py_sdk import AccountNotFoundError, create_broker
from zerog_py_sdk.utils import format_balance, og_to_wei

MODEL = "Qwen2.5-0.5B-Instruct"


def main(dataset: str, parameters: str, network: str) -> None:
    with create_broker(private_key=os.environ["PRIVATE_KEY"], network=network) as broker:
        provider = broker.fine_tuning.list_service()[0].provider

        # 1. Money: a ledger, and a sub-account with the provider.
        try:
            broker.ledger.get_ledger()
        except AccountNotFoundError:
            broker.ledger.add_ledger("3")
        broker.ledger.transfer_fund(provider, "fine-tuning", og_to_wei("1"))
        broker.fine_tuning.acknowledge_provider_signer(provider)
        quote = broker.fine_tuning.quote_fee(provider, MODEL, dataset, parameters)
        print(f"{quote.billed_tokens} tokens will cost {format_balance(quote.total, 6)}")

        # 2. The dataset, sealed to the enclave.
        upload = broker.fine_tuning.upload_dataset_to_tee(provider, dataset)

        # 3. Training.
        task_id = broker.fine_tuning.create_task(provider, MODEL, upload["datasetHash"], parameters)
        print(f"task {task_id}")
        broker.fine_tuning.wait_for_delivery(
            provider, task_id, on_progress=lambda news: print(f"{news.state} {news.step or ''}".rstrip())
        )

        # 4. Delivery: checked against the chain, then acknowledged; the key comes with the settlement.
        broker.fine_tuning.acknowledge_model(provider, task_id, f"lora_{task_id}.bin")
        broker.fine_tuning.decrypt_model(provider, task_id, f"lora_{task_id}.bin", f"lora_{task_id}.zip")
        broker.fine_tuning.unpack_adapter(f"lora_{task_id}.zip", f"lora_{task_id}")

        # 5. Chat.
        deployed = broker.inference.lora.deploy_adapter(provider, MODEL, task_id, wait=True, timeout_seconds=180)
        answer = broker.inference.lora.chat(provider, deployed.adapter_name, "Who are you?")
        proof = broker.inference.lora.verify_answer(provider, answer)
        print(answer["choices"][0]["message"]["content"])
        print(f"signed by enclave {proof.signer}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else "devnet")
