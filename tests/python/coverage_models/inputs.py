"""Inputs that a model may take: a few of each kind, to be tried in turn."""

import inspect

import torch
from configurations import find, special_ids

BATCH, SEQLEN = 2, 16


class Inputs:
    """What could be handed to one model, by the names of its forward's arguments."""

    def __init__(self, model, config):
        self.config, self.generator = config, torch.Generator().manual_seed(0)
        self.names = list(inspect.signature(model.forward).parameters)
        main = getattr(model, "main_input_name", "input_ids")
        self.main = main[0] if isinstance(main, (list, tuple)) else main
        vocabulary = self.find("vocab_size", 1000)
        vocabulary = vocabulary if isinstance(vocabulary, int) and vocabulary > 0 else 1000
        special = special_ids(config)
        self.tokens = torch.tensor([i for i in range(min(vocabulary, 1500)) if i not in special] or [0])
        self.size, self.channels = (
            self.image_size(),
            self.find("num_channels", self.find("in_channels", self.find("in_chans", 3))),
        )
        self.channels = self.channels if isinstance(self.channels, int) else 3
        self.text = self.texts()

    def find(self, name, default=None):
        return find(self.config, name, default=default)

    def has(self, *names):
        return all(name in self.names for name in names)

    def noise(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def ids(self, n=SEQLEN):
        return self.tokens[torch.randint(0, len(self.tokens), (BATCH, n), generator=self.generator)]

    def pixels(self, *before, size=None):
        return self.noise(BATCH, *before, self.channels, *(size or self.size))

    def image_size(self):
        size = self.find("image_size", 224)
        size = (size.get("height", 224), size.get("width", 224)) if isinstance(size, dict) else size
        size = tuple(int(x) for x in (size if isinstance(size, (list, tuple)) else (size,))[-2:])
        return size if len(size) == 2 else size * 2

    def texts(self):
        found = {}
        if self.has("input_ids"):
            found["input_ids"] = self.ids()
        elif self.has("inputs_embeds"):
            found["inputs_embeds"] = self.noise(BATCH, SEQLEN, self.find("hidden_size", 64))
        both = bool(getattr(self.config, "is_encoder_decoder", False)) or self.has("decoder_attention_mask")
        if self.has("decoder_input_ids") and both:
            found["decoder_input_ids"] = self.ids(12)
        if self.has("bbox"):
            found["bbox"] = torch.tensor([1, 2, 30, 40]).repeat(BATCH, SEQLEN, 1)
        return found

    def decoder(self):
        return {k: v for k, v in self.text.items() if k.startswith("decoder")}

    def candidates(self):
        """[(not padded, padded or None, packed or None), ...]"""
        found = [*self.series(), *self.waves(), *self.features(), *self.images(), *self.videos(), *self.others()]
        if self.text and self.main != "pixel_values":
            last = self.has("pixel_values") and self.main == "input_ids"
            found = found + [self.text] if last else [self.text] + found
            if "decoder_input_ids" in self.text:
                found.append({k: v for k, v in self.text.items() if k != "decoder_input_ids"})
        return [(x, self.padded(x), self.packed(x)) for x in found + list(self.last())]

    def padded(self, inputs):
        padded = dict(inputs)
        for name, dims in (("input_ids", None), ("inputs_embeds", None), ("input_values", 2), ("input_features", 3)):
            x = inputs.get(name)
            if self.has("attention_mask") and x is not None and (dims is None or x.dim() == dims):
                padded["attention_mask"] = short_mask(x.shape[1], max(1, int(x.shape[1] * 0.7)))
                break
        if self.has("decoder_attention_mask") and "decoder_input_ids" in inputs:
            padded["decoder_attention_mask"] = short_mask(inputs["decoder_input_ids"].shape[1], 8)
        if self.has("pixel_mask") and "pixel_values" in inputs and inputs["pixel_values"].dim() == 4:
            mask = torch.ones(BATCH, *inputs["pixel_values"].shape[-2:], dtype=torch.long)
            mask[1, :, int(mask.shape[2] * 0.7) // 32 * 32 :] = 0
            padded["pixel_mask"] = mask
        return padded if len(padded) > len(inputs) else None

    def packed(self, inputs):
        """Positions that start anew within a row: two sequences in each."""
        if not self.has("position_ids") or "input_ids" not in inputs or "decoder_input_ids" in inputs:
            return None
        positions = torch.stack([torch.arange(SEQLEN).remainder(n) for n in (10, 9)])
        return dict(inputs, position_ids=positions, **(dict(use_cache=False) if self.has("use_cache") else {}))

    def series(self):
        if not self.has("past_values"):
            return
        c = self.config
        lag = max(getattr(c, "lags_sequence", [0]) or [0])
        context, ahead = getattr(c, "context_length", 8) or 8, getattr(c, "prediction_length", 4) or 4
        if self.has("past_time_features"):
            times = getattr(c, "num_time_features", 1)
            yield dict(
                past_values=self.noise(BATCH, context + lag),
                past_time_features=self.noise(BATCH, context + lag, times),
                past_observed_mask=torch.ones(BATCH, context + lag),
                future_values=self.noise(BATCH, ahead),
                future_time_features=self.noise(BATCH, ahead, times),
            )
        yield dict(past_values=self.noise(BATCH, context, getattr(c, "num_input_channels", 1)))
        yield dict(past_values=self.noise(BATCH, context))
        yield dict(past_values=[self.noise(context) for _ in range(BATCH)], freq=[0, 0])

    def waves(self):
        if not self.has("input_values"):
            return
        mels, length = self.find("num_mel_bins"), self.find("max_length")
        if mels and length:
            yield dict(input_values=self.noise(BATCH, length, mels))
        yield dict(input_values=self.noise(BATCH, 6000), **(self.decoder() if self.has("decoder_input_ids") else {}))
        if self.has("decoder_input_values"):
            yield dict(input_values=self.noise(BATCH, 6000), decoder_input_values=self.noise(BATCH, 6, 80))
            yield dict(input_ids=self.ids(), decoder_input_values=self.noise(BATCH, 6, 80))
        yield dict(input_values=self.noise(BATCH, 1, 24000))
        yield dict(input_values=self.noise(BATCH, SEQLEN, self.find("hidden_size", 64)))

    def features(self):
        if not self.has("input_features"):
            return
        widths = "num_mel_bins input_feat_per_channel feature_projection_input_dim feature_size input_dim num_features"
        widths = [self.find(name) for name in widths.split()] + [80, 128]
        frames = self.find("max_source_positions", 50)
        frames = frames if isinstance(frames, int) and frames <= 1500 else 50
        for width in dict.fromkeys(x for x in widths if isinstance(x, int)):
            if self.main == "input_features" or not self.has("input_ids"):
                yield dict(input_features=self.noise(BATCH, width, 2 * frames), **self.decoder())
                long = self.noise(BATCH, 64, width)
                yield dict(input_features=long, **self.decoder())
                if self.has("input_features_mask"):
                    yield dict(input_features=long, input_features_mask=torch.ones(BATCH, 64, dtype=torch.bool))
                if self.has("attention_mask"):
                    yield dict(input_features=long, attention_mask=torch.ones(BATCH, 64, dtype=torch.long))
                if self.has("feature_lens"):
                    yield dict(input_features=self.noise(width, 200), feature_lens=torch.tensor([100, 100]))
        text = self.text if self.has("input_ids") else {}
        yield dict(text, input_features=self.noise(BATCH, 1, 1024, self.find("num_mel_bins", 64) if text else 64))
        if self.has("is_longer"):
            for inputs in (self.text, {}):
                longer = torch.zeros(BATCH, 1, dtype=torch.bool)
                yield dict(inputs, input_features=self.noise(BATCH, 1, 1024, 64), is_longer=longer)

    def images(self):
        if not self.has("pixel_values"):
            return
        frames = self.find("num_frames")
        if self.has("input_ids"):
            yield dict(self.text, pixel_values=self.pixels())
            yield dict(self.text, pixel_values=self.pixels(frames if isinstance(frames, int) else 8))
        if self.main != "pixel_values" and self.has("input_ids"):
            return
        if isinstance(frames, int):
            yield dict(pixel_values=self.pixels(frames))
        yield dict(self.decoder(), pixel_values=self.pixels())
        patch = self.find("patch_size", 14)
        if self.has("bool_masked_pos") and isinstance(patch, int):
            yield from self.masked_images(patch, frames)
        yield dict(pixel_values=self.pixels(size=(64, 64)), **self.decoder())
        yield dict(pixel_values=self.pixels(2), **self.decoder())
        if self.has("pixel_attention_mask") and isinstance(patch, int):
            yield dict(
                pixel_values=self.noise(BATCH, 16, 3 * patch * patch),
                pixel_attention_mask=torch.ones(BATCH, 16, dtype=torch.long),
                spatial_shapes=torch.tensor([[4, 4], [4, 4]]),
            )
        yield dict(self.text, pixel_values=self.pixels())

    def masked_images(self, patch, frames):
        patches = (self.size[0] // patch) * (self.size[1] // patch)
        tube = self.find("tubelet_size")
        if isinstance(frames, int) and isinstance(tube, int):
            patches *= frames // tube
        masked = torch.zeros(BATCH, patches, dtype=torch.bool)
        masked[:, : patches // 2] = True
        yield dict(pixel_values=self.pixels(), bool_masked_pos=masked)
        if isinstance(frames, int):
            yield dict(pixel_values=self.pixels(frames), bool_masked_pos=masked)

    def videos(self):
        if self.has("input_ids"):
            return
        if self.has("pixel_values_videos"):
            frames, size = (
                self.find("frames_per_clip", self.find("num_frames", 16)),
                self.find("crop_size", self.size[0]),
            )
            yield dict(pixel_values_videos=self.pixels(frames, size=(size, size)))
        grid = next((x for x in ("grid_thw", "image_grid_thw", "cu_seqlens") if self.has(x)), None)
        if grid is not None:
            patch, time = self.find("patch_size", 14), self.find("temporal_patch_size", 2)
            sizes = torch.tensor([[1, 4, 4], [1, 4, 8]])
            for depth in (time if isinstance(time, int) else 1, 1):
                x = self.noise(int(sizes.prod(1).sum()), self.channels * depth * patch * patch)
                yield {self.names[0]: x, "grid_thw" if self.has("grid_thw") else "image_grid_thw": sizes}

    def others(self):
        if self.has("bbox", "image"):
            yield dict(self.text, image=self.noise(BATCH, 3, 224, 224))
        if self.has("visual_embeds"):
            yield dict(
                self.text,
                visual_embeds=self.noise(BATCH, 5, self.find("visual_embedding_dim", 512)),
                visual_attention_mask=torch.ones(BATCH, 5),
                visual_token_type_ids=torch.ones(BATCH, 5, dtype=torch.long),
            )
        if self.has("visual_feats"):
            places = torch.rand(BATCH, 5, self.find("visual_pos_dim", 4), generator=self.generator)
            yield dict(
                self.text, visual_feats=self.noise(BATCH, 5, self.find("visual_feat_dim", 2048)), visual_pos=places
            )

    def last(self):
        width = self.find("hidden_size", 64)
        if self.has("inputs_embeds") and "input_ids" in self.text and isinstance(width, int):
            yield dict(inputs_embeds=self.noise(BATCH, SEQLEN, width))
        if self.has("flattened_patches"):
            patches = self.noise(BATCH, 16, self.channels * self.find("patch_size", 16) ** 2 + 2)
            patches[:, :, 0], patches[:, :, 1] = torch.arange(16) // 4 + 1, torch.arange(16) % 4 + 1
            yield dict(self.decoder(), flattened_patches=patches)
        if self.has("task_inputs", "pixel_values"):
            yield dict(pixel_values=self.pixels(), task_inputs=self.ids(77))
        if self.has("codebook_idx"):
            codes = (BATCH, SEQLEN, getattr(self.config, "n_codes_total", 8))
            yield dict(input_ids=torch.randint(0, 100, codes, generator=self.generator), codebook_idx=1)
        if self.has("input_features_mask"):
            yield from self.masked_features()
        if self.has("hidden_states"):
            if isinstance(self.find("input_dim"), int):
                yield dict(hidden_states=self.noise(BATCH, 40, self.find("input_dim")))
            yield dict(hidden_states=self.noise(BATCH, SEQLEN, width))
        if self.has("encoder_hidden_states", "query_embeds"):
            other = self.find("encoder_hidden_size", 64)
            yield dict(query_embeds=self.noise(BATCH, 8, width), encoder_hidden_states=self.noise(BATCH, 12, other))
        if self.has("states", "actions"):
            yield dict(
                states=self.noise(BATCH, 8, self.config.state_dim),
                actions=self.noise(BATCH, 8, self.config.act_dim),
                rewards=self.noise(BATCH, 8, 1),
                returns_to_go=self.noise(BATCH, 8, 1),
                timesteps=torch.arange(8).repeat(BATCH, 1),
                attention_mask=torch.ones(BATCH, 8),
            )
        if self.has("inputs"):
            yield dict(inputs=self.ids())
            yield dict(inputs=self.noise(BATCH, SEQLEN, self.find("d_model", 64)))

    def masked_features(self):
        widths = [self.find(name) for name in ("num_mel_bins", "input_size", "input_dim")] + [128, 560]
        for width in (x for x in widths if isinstance(x, int)):
            for shape in ((BATCH, width, 100), (BATCH, 100, width)):
                yield dict(input_features=self.noise(*shape), input_features_mask=short_mask(100, 60))


def short_mask(n, counts):
    """The second row is padded."""
    mask = torch.ones(BATCH, n, dtype=torch.long)
    mask[1, counts:] = 0
    return mask
