"""Bad inputs of all programs, for docs/bad_inputs.md."""

RUN = "--run {w}/new"
TRAIN = "--config {w}/experiment.py " + RUN
# (program, what is wrong, flags); {w} is the folder of `make`.
TABLE = [
    # A configuration's file.
    *(
        ("main", f"--config: {what}", f"--config {{w}}/{file} {RUN}")
        for what, file in (
            ("no such file", "nothing.py"),
            ("a folder", "empty"),
            ("a syntax error", "syntax.py"),
            ("no get_config", "none.py"),
            ("get_config returns a number", "number.py"),
            ("imports what is not there", "module.py"),
            ("divides by 0", "zero.py"),
            ("not UTF-8", "latin.py"),
        )
    ),
    ("main", "no --config", ""),
    # Settings.
    *(
        ("main", what, f"{TRAIN} {flags}")
        for what, flags in (
            ("an unknown flag", "--model.topk 2"),
            ("no number", "--model.top-k two"),
            ("a number of 5,000 digits", "--model.top-k " + "9" * 5000),
            ("an unknown choice", "--model.dispatch tokamax"),
            ("a seed of 65 bits", "--seed 18446744073709551616"),
            ("a seed below 0", "--data.seed -1"),
            ("a data set of the Hub that was not prepared", "--data.source hf:some/words/all --data.cache {w}/corpus"),
            ("more steps than can be counted", "--phases.0.steps 2199023255552"),
            ("a warm-up longer than the phase", "--phases.1.optim.warmup-steps 99"),
            ("an infinite learning rate", "--phases.1.optim.learning-rate inf"),
            ("a learning rate that is no number", "--phases.1.optim.learning-rate nan"),
            ("a learning rate beyond float32", "--phases.1.optim.learning-rate 1e39"),
            ("an infinite weight decay", "--phases.0.optim.weight-decay inf"),
            ("a temperature of no number", "--model.router.temperature nan"),
            ("a temperature that float32 rounds to 0", "--model.router.temperature 1e-60"),
            ("an infinite preference", "--model.ffn.preference inf"),
            ("annealing for ever", "--model.ffn.anneal-steps 1000000000000000000000000000000"),
            ("a router wider than any array", "--model.router.dim 1000000000000"),
            ("a model larger than the memory", "--model.d-model 1000000000"),
            ("a batch larger than the memory", "--data.batch-size 2000000000"),
            ("a billion chunks", "--model.num-chunks 1000000000"),
            ("heads that do not divide the width", "--model.num-heads 3"),
            ("more modules taken than there are", "--model.top-k 9"),
            ("sequences longer than the context", "--data.length 64"),
            ("an attention that is not for CPUs", "--model.attention-kernel cudnn"),
            ("an attention that does not fit the length", "--model.attention-kernel splash"),
            ("more devices than there are", "--mesh.data 4096"),
            ("a batch that does not divide", "--phases.0.optim.accumulation 3"),
            (
                "a second phase that cannot begin from the first",
                "--phases.0.model model --phases.1.model vanilla",
            ),
            ("init_from: no such folder", "--phases.1.init-from {w}/nothing"),
            ("init_from: a file", "--phases.1.init-from {w}/file"),
            ("init_from: a GPT-2 of Hugging Face", "--phases.1.init-from {w}/gpt2"),
            ("init_from: an empty folder", "--phases.1.init-from {w}/empty"),
            ("resume: no such folder", "--resume {w}/nothing"),
            ("resume: deep JSON", "--resume {w}/run-deep"),
            ("a pattern that matches nothing", "--phases.0.optim.freeze chunk/*"),
            ("--profile backwards", "--profile 3:2"),
            ("--profile past the end", "--profile 3:99"),
            ("--coordinator without a port", "--coordinator here --processes 2 --process 0"),
        )
    ),
    *(
        ("main", f"--run: {what}", f"--config {{w}}/experiment.py --run {{w}}/{folder}")
        for what, folder in (
            ("a file", "file"),
            ("other files in it", "texts"),
            ("a longer name than the file system takes", "r" * 300),
            ("a link for a lock", "run-link"),
            ("checkpoints are a link to another folder", "run-elsewhere"),
            ("below a file", "file/run"),
            ("config.json is empty", "run-empty"),
            ("config.json is cut off", "run-cut"),
            ("config.json is deep", "run-deep"),
            ("config.json is a folder", "run-folder"),
            ("config.json is a list", "run-list"),
        )
    ),
    # Sources and tokenizers.
    *(
        ("prepare", what, f"{source} --cache {{w}}/new")
        for what, source in (
            ("an unknown kind of source", "texts:{w}"),
            ("no colon", "corpus"),
            ("no such folder", "text:{w}/nothing/*.txt"),
            ("no file matches", "text:{w}/empty/*.txt"),
            ("a text that is not UTF-8", "text:{w}/texts/latin.txt/*"),
            ("a .gz that is cut off", "text:{w}/texts/cut.txt.gz/*"),
            ("a .xz that is none", "text:{w}/texts/junk.txt.xz/*"),
            ("a .zst that is none", "text:{w}/texts/junk.txt.zst/*"),
            ("a line of JSONL without a text", "text:{w}/texts/lines.jsonl/*"),
            ("a line of deep JSON", "text:{w}/texts/deep.jsonl/*"),
            ("token files of a dtype that runs code", "bin:{w}/bin-dtype"),
            ("token files of more ids than they can have", "bin:{w}/bin-vocabulary"),
            ("token files, meta.json is deep", "bin:{w}/bin-deep"),
            ("token files that are cut off", "bin:{w}/bin-odd"),
            ("token files that are empty", "bin:{w}/bin-empty"),
            ("token files with unknown ids", "bin:{w}/bin-id"),
            ("token files that are not there", "bin:{w}/empty"),
            ("a mixture without weights", "mix:text:a,text:b"),
            ("no name of a TFDS data set", "tfds:../../etc"),
            ("no name of a data set of the Hub", "hf:../../etc/passwd"),
            ("no name of a data set of the Hub", "hf:one/two/three/four"),
            ("a tokenizer that is not there", "text:{w}/corpus/*.txt --tokenizer {w}/nothing.model"),
            ("a tokenizer that is none", "text:{w}/corpus/*.txt --tokenizer {w}/tokenizers/junk.model"),
            ("a tokenizer that is empty", "text:{w}/corpus/*.txt --tokenizer {w}/tokenizers/empty.model"),
            ("a tokenizer that is a pipe", "text:{w}/corpus/*.txt --tokenizer {w}/pipe"),
            ("a tokenizer.json that is none", "text:{w}/corpus/*.txt --tokenizer {w}/tokenizers/junk.json"),
            ("a tokenizer.json that is deep", "text:{w}/corpus/*.txt --tokenizer {w}/tokenizers/deep.json"),
            ("a tokenizer of another kind", "text:{w}/corpus/*.txt --tokenizer {w}/tokenizers/kind.json"),
            ("a vocabulary of 10^30 ids", "text:{w}/corpus/*.txt --tokenizer {w}/tokenizers/vocabulary.json"),
            ("a vocabulary larger than the texts have", "text:{w}/corpus/*.txt --vocab-size 100000"),
            ("a share held out of no number", "text:{w}/corpus/*.txt --validation-fraction nan"),
        )
    ),
    ("prepare", "no source", ""),
    ("prepare", "--cache is a file", "text:{w}/corpus/*.txt --cache {w}/file"),
    # Checkpoints.
    *(
        ("generate", f"a run whose config.json {what}", f"--checkpoint {{w}}/run-{name}")
        for what, name in (
            ("has NaN", "nan"),
            ("has 1e999", "infinite"),
            ("has a name twice", "twice"),
            ("is not UTF-8", "latin"),
            ("has an unknown field", "unknown"),
            ("has an integer of 100 bits", "huge"),
            ("claims a billion chunks", "chunks"),
            ("has half a character", "half"),
            ("has a NUL", "nul"),
            ("has a text for a number", "text"),
            ("has a number for a list", "phases"),
            ("lacks a number", "none"),
        )
    ),
    *(
        ("generate", f"a single file: {what}", f"--checkpoint {{w}}/{name}.safetensors")
        for what, name in (
            ("claims a billion chunks", "chunks"),
            ("claims 10,000 layers", "bottom"),
            ("its configuration is deep", "deep"),
            ("of another version", "version"),
            ("of PyTorch's", "format"),
            ("cut off", "cut"),
            ("a header of 2^60 bytes", "long"),
            ("empty", "empty"),
            ("not there", "nothing"),
        )
    ),
    *(
        ("convert", f"a GPT-2: {what}", f"--input {{w}}/gpt2-{name} --output {{w}}/new --to vanilla")
        for what, name in (
            ("claims a billion layers", "layers"),
            ("claims a width of a million", "wide"),
            ("of another model_type", "type"),
            ("an unknown option", "option"),
            ("a text for a number", "text"),
            ("architectures is a number", "names"),
            ("the activation is a list", "activation"),
            ("no weights", "bare"),
        )
    ),
    (
        "convert",
        "the authors': a text for a number",
        "--input {w}/official-text --output {w}/new --to mom --config {w}/experiment.py",
    ),
    *(
        ("convert", f"a shard index {what}", f"--input {{w}}/index-{name} --output {{w}}/new --to vanilla")
        for what, name in (
            ("that names a file outside", "outside"),
            ("that names an absolute path", "absolute"),
            ("that names a link outside", "link"),
            ("that names what is missing", "missing"),
            ("without a table", "shape"),
            ("that names a number", "number"),
        )
    ),
    ("convert", "--output is there", "--input {w}/gpt2 --output {w}/run --to vanilla"),
    ("convert", "neither --to nor --prune", "--input {w}/gpt2 --output {w}/new"),
    ("convert", "a Mixture-of-Modules without a --config", "--input {w}/gpt2 --output {w}/new --to mom"),
    ("convert", "an output of another ending", "--input {w}/gpt2 --output {w}/new --to safetensors"),
    ("convert", "shares that are none", "--input {w}/run --output {w}/new --prune attn=half"),
    ("generate", "no such folder", "--checkpoint {w}/nothing"),
    ("generate", "a file of another kind", "--checkpoint {w}/file"),
    ("generate", "an empty folder", "--checkpoint {w}/empty"),
    ("generate", "a tokenizer beside it that is none", "--checkpoint {w}/run-vocabulary"),
    *(
        ("generate", what, "--checkpoint {w}/run/checkpoints/pretrain " + flags)
        for what, flags in (
            ("a prompt that is not UTF-8", "--prompt \udcff\udcfe"),
            ("a stop text that is not UTF-8", "--stop \udcff"),
            ("a billion samples", "--samples 1000000000"),
            ("no tokens", "--tokens 0"),
            ("a seed of 65 bits", "--seed 18446744073709551616"),
            ("a temperature below 0", "--temperature -1"),
            ("a temperature of no number", "--temperature nan"),
            ("top_p above 1", "--top-p 2"),
        )
    ),
    # Evaluation, analysis, planning, reports.
    ("evaluate", "an unknown task", "--checkpoint {w}/run --task perplexty"),
    ("evaluate", "a flag of another task", "--checkpoint {w}/run --tasks piqa"),
    ("evaluate", "a limit below 0", "--checkpoint {w}/run --limit -1"),
    ("evaluate", "an output that is a file", "--checkpoint {w}/run/checkpoints/pretrain --output {w}/file"),
    ("evaluate", "a GPT-2 without texts", "--checkpoint {w}/gpt2 --output {w}/new"),
    ("evaluate", "texts that are not there", "--checkpoint {w}/gpt2 --output {w}/new --data.source text:{w}/nothing/*"),
    ("evaluate", "GLUE with an infinite learning rate", "--checkpoint {w}/gpt2 --task glue --glue.learning-rate inf"),
    ("evaluate", "no checkpoint", ""),
    ("analyse", "no such folder", "--checkpoint {w}/nothing"),
    ("analyse", "no tokens", "--checkpoint {w}/run --tokens 0"),
    ("analyse", "an output that is a file", "--checkpoint {w}/run/checkpoints/pretrain --output {w}/file"),
    ("plan", "no --topology", "--config {w}/experiment.py"),
    ("plan", "an unknown phase", "--config {w}/experiment.py --topology v5e:2x2 --phase none"),
    ("plan", "nothing to compile", "--config {w}/experiment.py --topology v5e:2x2 --compile 0"),
    ("report", "no such folder", "{w}/nothing"),
    ("report", "a file", "{w}/file"),
    *(
        ("report", f"a log {what}", f"{{w}}/log-{name}")
        for what, name in (
            ("with a broken line", "broken"),
            ("with NaN", "nan"),
            ("with deep JSON", "deep"),
            ("without steps", "other"),
            ("with other values than training writes", "shape"),
            ("that is empty", "empty"),
        )
    ),
    ("report", "config.json is deep", "{w}/run-deep"),
    ("report", "routes that are none", "{w}/run-routes"),
    ("report", "an unknown flag", "{w}/run --colour red"),
    ("verify", "no such folder", "{w}/nothing"),
    ("verify", "neither a run nor a cache", "{w}/empty"),
]
