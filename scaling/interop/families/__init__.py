"""The families of Hugging Face that are read and written, a file of data each."""

from scaling.interop.families import (
    albert,
    bart,
    bert,
    bloom,
    ctrl,
    deberta,
    gemma,
    gpt2,
    gpt_neo,
    gpt_neox,
    gptj,
    llama,
    mistral,
    mixtral,
    opt,
    qwen,
    t5,
    xlm,
    xlnet,
)
from scaling.interop.family import Family

# In the order in which an export looks for one that can express a model.
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        gpt2.GPT2,
        gpt2.GPT1,
        llama.LLAMA,
        mistral.MISTRAL,
        mixtral.MIXTRAL,
        qwen.QWEN2,
        qwen.QWEN3,
        gemma.GEMMA,
        gpt_neo.GPT_NEO,
        gptj.GPTJ,
        gpt_neox.GPT_NEOX,
        bloom.BLOOM,
        opt.OPT,
        ctrl.CTRL,
        bert.BERT,
        bert.ROBERTA,
        bert.XLM_ROBERTA,
        bert.DISTILBERT,
        xlm.XLM,
        deberta.DEBERTA,
        deberta.DEBERTA_2,
        albert.ELECTRA,
        albert.ALBERT,
        xlnet.XLNET,
        t5.T5,
        t5.MT5,
        bart.BART,
    )
}
