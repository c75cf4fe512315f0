"""What stage 2 trained answers image questions alike in the live rollout engine and as an export in plain transformers."""


from tests.models.stages import FixedSampler, build_vold, configuration, layout_of


def train_answer_and_export(folder):
    """Two steps at this layout; greedy answers of the synced engine; the export beside them."""
    from vold_nemo.checkpoint.export import export_hf
    from vold_nemo.data.prompts import load_prompts
    from vold_nemo.data.rejected import Rejected
    from vold_nemo.data.templates import load_tokenizer, render_prompt
    from vold_nemo.megatron import parallel
    from vold_nemo.rollout.engine import EnginePrompt, Sampling
    from vold_nemo.rollout.transformers_engine import TransformersEngine

    config = configuration(folder, "parallel=tp2", "rollout.probe_tolerance=1e9")
    layout = layout_of(config)
    model = build_vold(config, layout, FixedSampler())
    for step in range(2):
        model.train_step(step)
    engine = TransformersEngine(folder / "student")
    engine.load(model.hf_weights(), version=2)
    tokenizer = load_tokenizer(folder / "student")
    prompts = load_prompts(config.vold.validation.data, None, Rejected(None, 0.0))
    completions = engine.generate(
        [EnginePrompt(render_prompt(tokenizer, prompt), prompt.open_images()) for prompt in prompts],
        Sampling(1, 0.0, 8), expect_version=2,
    )  # fmt: skip
    export_hf(model.hf_weights(), folder / "student", folder / "export", 10**9, write=layout.rank == 0)
    parallel.destroy()
    return [done.ids for done in completions]


def test_an_export_answers_image_questions_like_the_engine_it_was_trained_with(gloo, world):
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

    from vold_nemo.data.prompts import load_prompts
    from vold_nemo.data.rejected import Rejected
    from vold_nemo.data.templates import load_tokenizer, render_prompt

    answers = gloo(2).run(train_answer_and_export, world)[0]
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(world / "export").eval()
    tokenizer = load_tokenizer(world / "export")
    pixels = Qwen2VLImageProcessorPil.from_pretrained(world / "export")
    prompts = load_prompts(configuration(world).vold.validation.data, None, Rejected(None, 0.0))
    for prompt, answer in zip(prompts, answers, strict=True):
        features = pixels(images=prompt.open_images(), return_tensors="pt")
        grids, ids = iter(features["image_grid_thw"].tolist()), []
        for token in render_prompt(tokenizer, prompt):
            wide = token == model.config.image_token_id
            t, h, w = next(grids) if wide else (1, 2, 2)
            ids += [token] * (t * h * w // 4)
        ids = torch.tensor([ids])
        kinds = (ids == model.config.image_token_id).int()
        with torch.no_grad():
            said = model.generate(input_ids=ids, mm_token_type_ids=kinds, max_new_tokens=8, do_sample=False, **features)
        assert said[0, ids.shape[1] :].tolist() == answer
