"""A MONAI Deploy application: DICOM in, DICOM SEG out, by the bundle in whose folder it lies.

    pip install monai-deploy-app-sdk -r requirements-dicom.txt SimpleITK
    python examples/deploy_app.py --input DICOM --output OUT

The first MR series of the input is segmented. The bundle's own folder inference reads more kinds of series, checks
them, and reports (``digar predict --dicom-seg``); this is for where MONAI Deploy runs things.
"""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application, Image, IOType
from monai.deploy.core.domain.dicom_series import DICOMSeries
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
from monai.deploy.operators.dicom_seg_writer_operator import DICOMSegmentationWriterOperator, SegmentDescription
from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator
from monai.deploy.operators.dicom_series_to_volume_operator import DICOMSeriesToVolumeOperator
from monai.deploy.operators.monai_bundle_inference_operator import IOMapping, MonaiBundleInferenceOperator
from pydicom.sr.coding import Code

BUNDLE = Path(__file__).resolve().parents[1]
sys.path.append(str(BUNDLE / "scripts"))  # where the package is not installed

from digar.data.task import find_task  # noqa: E402

MODALITY = "MR"
SERIES = f'{{"selections": [{{"name": "series", "conditions": {{"Modality": "(?i){MODALITY}"}}}}]}}'


class SeriesToVolume(DICOMSeriesToVolumeOperator):
    """MONAI Deploy's operator, which takes the distance of rows for that of columns and the other way round (4.0.0)."""

    def compute_affine_transform(self, s_1: Any, s_n: Any, n: int, series: DICOMSeries) -> None:
        super().compute_affine_transform(s_1, s_n, n, series)
        rows, columns = (float(distance) for distance in s_1[0x0028, 0x0030].value)  # PixelSpacing
        for affine in (series.dicom_affine_transform, series.nifti_affine_transform):
            for axis, size in ((0, columns), (1, rows)):
                affine[:3, axis] *= size / np.linalg.norm(affine[:3, axis])


class SegmentationApp(Application):
    """Study, series, volume, mask, DICOM SEG: MONAI Deploy's own operators, set up by the bundle's task."""

    def compose(self) -> None:
        context: AppContext = Application.init_app_context(self.argv)
        context.models = None  # the bundle's folder "models" is no collection of models: the operator reads the bundle
        study = DICOMDataLoaderOperator(self, CountCondition(self, 1), input_folder=context.input_path, name="study")
        series = DICOMSeriesSelectorOperator(self, rules=SERIES, name="series")
        volume = SeriesToVolume(self, name="volume")
        network = MonaiBundleInferenceOperator(
            self,
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            app_context=context,
            bundle_path=BUNDLE,
            name="network",
        )
        writer = DICOMSegmentationWriterOperator(
            self, segment_descriptions=segments(), output_folder=context.output_path, name="writer"
        )
        self.add_flow(study, series, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(series, volume, {("study_selected_series_list", "study_selected_series_list")})
        self.add_flow(volume, network, {("image", "image")})
        self.add_flow(network, writer, {("pred", "seg_image")})
        self.add_flow(series, writer, {("study_selected_series_list", "study_selected_series_list")})


def segments() -> list[SegmentDescription]:
    """What DICOM calls the labels of the bundle's task, in the order of their values."""
    task = find_task(None, [BUNDLE / "models"])
    return [
        SegmentDescription(
            segment_label=name,
            segmented_property_category=Code(*task.codes[value]["category"]),
            segmented_property_type=Code(*task.codes[value]["type"]),
            algorithm_name="DiGAR",
            algorithm_version="1",
        )
        for value, name in sorted(task.labels.items())
    ]


if __name__ == "__main__":
    options = [str(Path(word).resolve()) if Path(word).exists() else word for word in sys.argv]
    os.chdir(BUNDLE)  # the bundle's paths begin there
    sys.argv = options
    SegmentationApp().run()
