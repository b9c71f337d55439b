"""Pose models by name."""

import landmark_models
import pose_models as fakes
import pytest

from data_pipelines.errors import InputError
from data_pipelines.footage import landmarks, pose, pose_models
from launch.footage import extract_skeletons


def test_every_name_is_in_the_help():
    for name in pose_models.MODELS:
        assert name in extract_skeletons.MODEL._flagvalues["model"].help
        assert name in extract_skeletons.__doc__


def test_the_addresses_say_what_the_settings_say():
    for name, published in pose_models.MODELS.items():
        url, license, _ = published.download
        assert url.startswith("https://"), name
        assert license == "Apache-2.0", name
        if name.startswith("rtmpose"):
            assert f"/{name}_simcc-body7" in url
            assert "-{}x{}".format(*published.input_size) in url


@pytest.mark.parametrize(("name", "udp"), [("rtmpose-m", False), ("vitpose-b", True)])
def test_a_name_needs_no_settings(tmp_path, monkeypatch, name, udp):
    path = fakes.write_heatmap_model(tmp_path / "m.onnx", size=("height", "width"))
    monkeypatch.setattr(pose_models, "find_model", lambda value, downloads, flag: path)
    model = pose_models.load_model(name, batch_size=2)
    assert isinstance(model, pose.PoseModel)
    assert (model.input_size, model.udp) == ((256, 192), udp)
    with pytest.raises(InputError, match=f"--model={name}: leave out --input_size and --udp"):
        pose_models.load_model(name, udp=True)


def test_a_file_is_loaded_by_its_ending(tmp_path):
    path = landmark_models.write_movenet(tmp_path / "m.tflite")
    assert isinstance(pose_models.load_model(str(path)), landmarks.LandmarkModel)
    with pytest.raises(InputError, match="leave out --input_size and --udp"):
        pose_models.load_model(str(path), input_size=(16, 16))
    with pytest.raises(InputError, match="TFLite models run on the CPU; leave out --device"):
        pose_models.load_model(str(path), device="cuda")
    path = fakes.write_heatmap_model(tmp_path / "m.onnx")
    assert pose_models.load_model(str(path)).udp is False
    assert pose_models.load_model(str(path), udp=True).udp is True
    with pytest.raises(InputError, match=r"--model=rtmpose: no such file.*rtmpose-m, .*blazepose"):
        pose_models.load_model("rtmpose")
