"""nnU-Net's own predictor around this bundle's network, as a peer of ``benchmarks.inference``.

Its reading, cropping to what is not zero, resampling, normalisation (z-score), windows, mirroring and export, with
one process each for preprocessing and export; the network, the windows and their overlap are those of the bundle's
config. Tested with nnunetv2 2.8.1; ``pip install nnunetv2``.
"""

import math
import time
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser


class ForNnunet(torch.nn.Module):
    """The network as nnU-Net calls it: axes in its order ``(Z, Y, X)``."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network(image.transpose(2, 4)).transpose(2, 4).contiguous()


def plans(spacing: list[float], patch: list[int]) -> dict[str, Any]:
    """What nnU-Net's planner would have written, with its default functions; axes ``(Z, Y, X)``, mm and voxels."""
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    return {
        "dataset_name": "Dataset001_Benchmark",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": {}},
        "configurations": {
            "3d_fullres": {
                "architecture": {},  # the network comes ready
                "data_identifier": "nnUNetPlans_3d_fullres",
                "preprocessor_name": "DefaultPreprocessor",
                "patch_size": patch,
                "spacing": spacing,
                "normalization_schemes": ["ZScoreNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": resampling,
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
            }
        },
    }


def predict(config_file: str, root: str, images: Path, output: Path, mirroring: bool) -> float:
    """Segment a folder of NIfTI images; the seconds that it took after the predictor was made."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    config = ConfigParser(ConfigParser.load_config_file(config_file))
    config["bundle_root"] = root
    network = config.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(Path(root) / "models/model.pt", weights_only=True))
    spacing, patch = ([*config.get_parsed_content(name)][::-1] for name in ("spacing", "roi_size"))
    manager = PlansManager(plans(spacing, patch))
    labels = {"background": 0, **{str(n): n for n in range(1, config.get_parsed_content("num_classes"))}}
    predictor = nnUNetPredictor(
        tile_step_size=1 - config.get_parsed_content("overlap"),
        use_gaussian=True,
        use_mirroring=mirroring,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        verbose=False,
        allow_tqdm=False,
    )
    wrapped = ForNnunet(network)
    predictor.manual_initialization(
        wrapped,
        manager,
        manager.get_configuration("3d_fullres"),
        [wrapped.state_dict()],
        {"channel_names": {"0": "MRI"}, "labels": labels, "file_ending": ".nii.gz"},
        "nnUNetTrainer",
        (0, 1, 2) if mirroring else None,
    )
    files = sorted(images.glob("*.nii*"))
    output.mkdir(parents=True)
    began = time.perf_counter()
    predictor.predict_from_files(
        [[str(file)] for file in files],
        [str(output / file.name.split(".")[0]) for file in files],
        num_processes_preprocessing=1,
        num_processes_segmentation_export=1,
    )
    seconds = time.perf_counter() - began
    made = len(list(output.glob("*.nii.gz")))
    return seconds if made == len(files) else math.nan
