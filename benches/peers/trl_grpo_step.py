#!/usr/bin/env python3
"""Times GRPO steps of TRL on the CPU: prompts x group answers of a fixed length, sampled, scored and trained on, loading not counted.

    python benches/peers/trl_grpo_step.py FOLDER --prompts 2 --group 8 --prompt-tokens 256 --new-tokens 64

Every answer is exactly --new-tokens long (the end-of-sequence token is forbidden until then), one optimizer step a batch (TRL's
num_iterations = 1), no KL term (beta = 0, so no reference model), full-parameter AdamW in f32. The reward is a hash of the answer: it
costs nothing and differs inside a group, so that no advantage is zero. Prompts are random token ids decoded to text, because TRL takes
text: their length as TRL's own tokenizer sees it is reported. Prints one JSON line.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
import warnings
import zlib


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a Hugging Face folder with a tokenizer")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3, help="steps that are timed, after one that is not")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="TRL's default; off here, since it only costs time")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def prompts(tokenizer, count, length, rng):
    """Texts that the tokenizer turns into `length` tokens: words with a space before, each one token however they are joined."""
    words = [
        w for w, _ in sorted(tokenizer.get_vocab().items(), key=lambda kv: kv[1]) if w.startswith("Ġ") and w[1:].isalpha() and len(w) > 4
    ]
    texts = []
    for _ in range(count):
        ids = [tokenizer.convert_tokens_to_ids(rng.choice(words)) for _ in range(length)]
        texts.append(tokenizer.decode(ids))
    return texts


def main():
    args = arguments()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(args.threads)
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers
    import trl
    from datasets import Dataset

    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")

    class Clock(transformers.TrainerCallback):
        def __init__(self):
            self.seconds = []

        def on_step_begin(self, *_, **__):
            self.begin = time.perf_counter()

        def on_step_end(self, *_, **__):
            self.seconds.append(time.perf_counter() - self.begin)

    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="sdpa")
    steps = args.steps + 1
    texts = prompts(tokenizer, args.prompts * steps, args.prompt_tokens, random.Random(args.seed))
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]

    def reward(completions, **_):
        return [zlib.crc32(text.encode()) / 2**32 for text in completions]

    with tempfile.TemporaryDirectory() as out:
        config = trl.GRPOConfig(
            output_dir=out,
            use_cpu=True,
            bf16=False,
            max_steps=steps,
            per_device_train_batch_size=args.prompts * args.group,
            num_generations=args.group,
            max_completion_length=args.new_tokens,
            generation_kwargs={"min_new_tokens": args.new_tokens},
            temperature=1.0,
            beta=0.0,
            learning_rate=1e-6,
            gradient_checkpointing=args.gradient_checkpointing,
            shuffle_dataset=False,
            save_strategy="no",
            logging_strategy="steps",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            seed=args.seed,
        )
        dataset = Dataset.from_dict({"prompt": texts})
        clock = Clock()
        trainer = trl.GRPOTrainer(model, reward, args=config, train_dataset=dataset, processing_class=tokenizer, callbacks=[clock])
        # The trainer's own log lines must not mix with the result.
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    logs = [x for x in trainer.state.log_history if "completions/mean_length" in x]
    seconds = clock.seconds[1:]
    step = statistics.median(seconds)
    line = {
        "peer": "trl",
        "bench": "grpo_step",
        "dtype": "f32",
        "prompts": args.prompts,
        "group": args.group,
        "prompt_tokens": sorted(set(lengths)),
        "new_tokens": args.new_tokens,
        "mean_answer_tokens": logs[-1]["completions/mean_length"],
        "seconds": round(step, 3),
        "answer_tokens_per_second": round(args.prompts * args.group * args.new_tokens / step, 2),
        "runs": [round(s, 3) for s in seconds],
        "gradient_checkpointing": args.gradient_checkpointing,
        "threads": args.threads,
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
