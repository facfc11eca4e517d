"""Public data sets that come with CSV files, each drawn with a handful of pictures in its published layout."""

import gzip
import uuid

import numpy as np
import pytest
from PIL import Image

from kmed.config import load_config
from kmed.data.prepare import open_table, read_split_table
from kmed.errors import DataError

CHEXPERT = (
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,"
    "Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
MIMIC = (
    "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,Lung Opacity,"
    "No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)


def draw(path, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (12, 12), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def opened(path, *settings):
    return open_table(load_config(overrides=[*settings, ("data.path", str(path))]))


def split(path, *settings):
    return read_split_table(load_config(overrides=[*settings, ("data.path", str(path))]))


def labels_of(table, path):
    row = table.labels[table.rows["path"].tolist().index(path)]
    return {name: value for name, value in zip(table.class_names, row.tolist()) if value == value and value != 0}


FINDINGS = ("Cardiomegaly|Emphysema", "No Finding", "Pleural_Thickening", "No Finding", "Cardiomegaly")


def nih_rows(number):
    """Returns (name, line) of each picture: two of each patient."""
    for index in range(number):
        name = f"{index // 2 + 1:08d}_{index % 2:03d}.png"
        finding = FINDINGS[index // 2 % len(FINDINGS)]
        yield name, f"{name},{finding},{index % 2},{index // 2 + 1},058Y,M,PA,2682,2749,0.143,0.143"


def test_nih_chest_xrays_as_kaggle_gives_them(tmp_path):
    rows = list(nih_rows(48))
    for index, (name, _) in enumerate(rows):
        draw(tmp_path / f"images_{index // 16 + 1:03d}" / "images" / name, index)
    header = (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
    )
    write_lines(tmp_path / "Data_Entry_2017.csv", [header, *(f"{line}," for _, line in rows)])
    boxes = ["Image Index,Finding Label,Bbox [x,y,w,h],,,", f"{rows[0][0]},Cardiomegaly,225.0,547.0,86.7,79.1,,,"]
    write_lines(tmp_path / "BBox_List_2017.csv", boxes)
    write_lines(tmp_path / "train_val_list.txt", [name for name, _ in rows[:36]])
    write_lines(tmp_path / "test_list.txt", [name for name, _ in rows[36:]])
    table = opened(tmp_path)
    assert (table.task, len(table), table.grouped) == ("multilabel", 48, True)
    assert table.class_names == ("Cardiomegaly", "Emphysema", "Pleural_Thickening", "No Finding")
    assert labels_of(table, "images_001/images/00000001_001.png") == {"Cardiomegaly": 1, "Emphysema": 1}
    assert table.rows["group"].tolist() == [str(index // 2 + 1) for index in range(48)]
    assert table.rows["Patient Age"].unique().tolist() == ["058Y"]
    assert "Splits are taken from test_list.txt and train_val_list.txt." in table.notes
    counts = split(tmp_path).rows["split"].value_counts()
    assert counts["test"] == 12 and counts["train"] + counts["val"] == 36 and counts["val"] > 0


@pytest.mark.parametrize("inside", ["sample", "."])
def test_the_sample_of_the_nih_chest_xrays(tmp_path, inside):
    rows = list(nih_rows(40))
    for index, (name, _) in enumerate(rows):
        draw(tmp_path / "sample" / "images" / name, index)
    header = (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImageWidth,OriginalImageHeight,OriginalImagePixelSpacing_x,OriginalImagePixelSpacing_y"
    )
    write_lines(tmp_path / inside / "sample_labels.csv", [header, *(line for _, line in rows)])
    table = split(tmp_path)
    assert (table.task, len(table), table.rows["group"].nunique()) == ("multilabel", 40, 20)
    assert set(table.rows["split"]) == {"train", "val", "test"}
    assert all(file.is_file() for file in table.files)


def write_chexpert(root, prefix="CheXpert-v1.0-small"):
    cells = ("1.0,,,,,,,,,0.0,,,,1.0", ",1.0,1.0,1.0,0.0,-1.0,,0.0,-1.0,,1.0,,,", ",,,,,0.0,1.0,,1.0,,,1.0,1.0,1.0")
    header = f"Path,Sex,Age,Frontal/Lateral,AP/PA,{CHEXPERT}"
    for file, first, number in (("train", 1, 24), ("valid", 64541, 6)):
        lines = [header]
        for index in range(number):
            for view in ("view1_frontal", "view2_lateral"):
                path = f"{file}/patient{first + index:05d}/study1/{view}.jpg"
                draw(root / path, index)
                lines.append(f"{prefix}/{path},Female,68,Frontal,AP,{cells[index % 3]}")
        write_lines(root / f"{file}.csv", lines)


def test_chexpert(tmp_path):
    root = tmp_path / "CheXpert-v1.0-small"
    write_chexpert(root)
    table = opened(root)
    assert (table.task, len(table)) == ("multilabel", 60)
    assert table.class_names == tuple(CHEXPERT.split(","))
    assert table.rows["split"].value_counts().to_dict() == {"train": 48, "val": 12}
    assert table.rows["group"].nunique() == 30 and table.rows["group"].iloc[0] == "patient00001"
    first = "train/patient00001/study1/view1_frontal.jpg"
    assert labels_of(table, first) == {"No Finding": 1, "Support Devices": 1}
    second = table.labels[table.rows["path"].tolist().index(first.replace("00001", "00002"))]
    known = dict(zip(table.class_names, second))
    assert known["Cardiomegaly"] == 1 and np.isnan(known["Edema"]) and np.isnan(known["Atelectasis"])
    assert set(split(root).rows["split"]) == {"train", "val", "test"}


def test_one_of_the_files_of_chexpert_names_its_own_pictures(tmp_path):
    root = tmp_path / "CheXpert-v1.0-small"
    write_chexpert(root)
    table = opened(root / "train.csv")
    assert len(table) == 48
    assert any("12 of 60 pictures" in note and "not listed in train.csv" in note for note in table.notes)
    assert len(opened(tmp_path / "CheXpert-v1.0-small" / "valid.csv")) == 12


def test_chexpert_in_a_folder_of_another_name_says_what_to_do(tmp_path):
    write_chexpert(tmp_path / "archive")
    with pytest.raises(DataError, match="Without their first folder, 'CheXpert-v1.0-small', they are found.*archive"):
        opened(tmp_path / "archive" / "train.csv")


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_mimic_cxr_jpg(tmp_path, suffix):
    labels, splits, metadata = [f"subject_id,study_id,{MIMIC}"], ["dicom_id,study_id,subject_id,split"], []
    metadata = ["dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns"]
    cells = (",,,,,,,,1.0,,,,0.0,1.0", "1.0,,0.0,-1.0,1.0,,0.0,,,1.0,,,,", ",1.0,,1.0,,1.0,,1.0,,,1.0,0.0,,")
    words = ("train", "train", "validate", "test")
    for index in range(24):
        subject, study = 10000032 + index // 2, 50414267 + index
        if index != 5:  # a few studies of the real set have no labels
            labels.append(f"{subject},{study},{cells[index % 3]}")
        for view in ("PA", "LATERAL"):
            name = str(uuid.UUID(int=1000 * index + len(view)))
            draw(tmp_path / "files" / f"p{str(subject)[:2]}" / f"p{subject}" / f"s{study}" / f"{name}.jpg", index)
            splits.append(f"{name},{study},{subject},{words[index // 2 % 4]}")
            metadata.append(f"{name},{subject},{study},CHEST (PA AND LAT),{view},3056,2544")
    for name, lines in (("chexpert", labels), ("split", splits), ("metadata", metadata)):
        write_lines(tmp_path / f"mimic-cxr-2.0.0-{name}{suffix}", lines)
    table = opened(tmp_path)
    assert (table.task, len(table), table.grouped) == ("multilabel", 46, True)
    assert table.class_names == tuple(MIMIC.split(","))
    assert table.rows["split"].value_counts().to_dict() == {"train": 24, "val": 10, "test": 12}
    assert table.rows["group"].nunique() == 12 and table.rows["group"].str.fullmatch(r"100000\d\d").all()
    row = table.rows.index[table.rows["study_id"] == "50414267"][0]
    assert labels_of(table, table.rows["path"][row]) == {"No Finding": 1, "Support Devices": 1}
    assert set(table.rows["ViewPosition"]) == {"PA", "LATERAL"}
    assert any("2 of 48 pictures" in note and "have no labels" in note for note in table.notes)
    write_lines(tmp_path / f"mimic-cxr-2.0.0-negbio{suffix}", labels)
    with pytest.raises(DataError, match="chexpert.*negbio.*labels_csv"):
        opened(tmp_path)
    again = opened(tmp_path, f"data.labels_csv=mimic-cxr-2.0.0-chexpert{suffix}")
    assert again.rows.equals(table.rows)


def write_dicom(path, number):
    pydicom = pytest.importorskip("pydicom", reason="pip install kmed[dicom]")
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, pydicom.uid.generate_uid()
    dataset.Rows = dataset.Columns = 12
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = np.random.default_rng(number).integers(0, 256, (12, 12), dtype=np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def test_rsna_pneumonia(tmp_path):
    boxes, classes = ["patientId,x,y,width,height,Target"], ["patientId,class"]
    for index in range(24):
        name = str(uuid.UUID(int=index))
        write_dicom(tmp_path / "stage_2_train_images" / f"{name}.dcm", index)
        boxes += [f"{name},,,,,0"] if index % 2 else [f"{name},264.0,152.0,213.0,379.0,1", f"{name},562,152,256,453,1"]
        classes += [f"{name},Normal"] if index % 2 else [f"{name},Lung Opacity"] * 2
    write_dicom(tmp_path / "stage_2_test_images" / f"{uuid.UUID(int=99)}.dcm", 99)
    write_lines(tmp_path / "stage_2_train_labels.csv", boxes)
    write_lines(tmp_path / "stage_2_detailed_class_info.csv", classes)
    write_lines(tmp_path / "stage_2_sample_submission.csv", ["patientId,PredictionString", f"{uuid.UUID(int=99)},0.5"])
    with pytest.raises(
        DataError, match="detailed_class_info.csv, stage_2_train_labels.csv. Choose one with labels_csv"
    ):
        opened(tmp_path)
    table = split(tmp_path, "data.labels_csv=stage_2_train_labels.csv")
    assert (table.task, len(table), table.class_names, table.grouped) == ("multiclass", 24, ("0", "1"), True)
    assert table.class_indices.tolist() == [1, 0] * 12
    assert any("36 rows name 24 pictures" in note for note in table.notes)
    assert any("1 of 25 pictures" in note and "not listed" in note for note in table.notes)
    other = opened(tmp_path, "data.labels_csv=stage_2_detailed_class_info.csv")
    assert other.class_names == ("Lung Opacity", "Normal")


def test_ham10000(tmp_path):
    lines = ["lesion_id,image_id,dx,dx_type,age,sex,localization"]
    for index in range(40):
        name = f"ISIC_{27419 + index:07d}"
        draw(tmp_path / f"HAM10000_images_part_{1 + index // 20}" / f"{name}.jpg", index)
        lines.append(f"HAM_{index // 2:07d},{name},{('bkl', 'nv')[index // 2 % 2]},histo,80.0,male,scalp")
    write_lines(tmp_path / "HAM10000_metadata.csv", lines)
    write_lines(tmp_path / "hmnist_8_8_L.csv", ["pixel0000,pixel0001,label", "169,171,2"])
    table = split(tmp_path)
    assert (table.task, len(table), table.class_names) == ("multiclass", 40, ("bkl", "nv"))
    assert table.rows["path"].iloc[-1] == "HAM10000_images_part_2/ISIC_0027458.jpg"
    assert table.rows["group"].nunique() == 20 and table.rows["group"].str.startswith("HAM_").all()


def test_isic_2019(tmp_path):
    classes = "MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK"
    labels, metadata = [f"image,{classes}"], ["image,age_approx,anatom_site_general,lesion_id,sex"]
    for index in range(64):
        name = f"ISIC_{index:07d}" + "_downsampled" * (index == 3)
        draw(tmp_path / "ISIC_2019_Training_Input" / f"{name}.jpg", index)
        labels.append(f"{name}," + ",".join("1.0" if index // 2 % 8 == column else "0.0" for column in range(9)))
        metadata.append(f"{name},55.0,anterior torso,{'' if index == 1 else f'MSK4_{index // 2:07d}'},female")
    write_lines(tmp_path / "ISIC_2019_Training_GroundTruth.csv", labels)
    write_lines(tmp_path / "ISIC_2019_Training_Metadata.csv", metadata)
    table = split(tmp_path)
    assert (table.task, len(table), table.class_names) == ("multiclass", 64, tuple(classes.split(",")[:8]))
    assert any("'UNK' holds no 1" in note for note in table.notes)
    assert table.rows["group"].nunique() == 33 and set(table.rows["sex"]) == {"female"}
    assert any("1 pictures without lesion_id" in note for note in table.notes)
    assert any("ISIC_2019_Training_Metadata.csv" in note for note in table.notes)


def test_aptos_2019(tmp_path):
    train = ["id_code,diagnosis"]
    for index in range(40):
        draw(tmp_path / "train_images" / f"{index:012x}.png", index)
        train.append(f"{index:012x},{index % 5}")
    draw(tmp_path / "test_images" / "ffffffffffff.png")
    write_lines(tmp_path / "train.csv", train)
    write_lines(tmp_path / "test.csv", ["id_code", "ffffffffffff"])
    write_lines(tmp_path / "sample_submission.csv", ["id_code,diagnosis", "ffffffffffff,0"])
    table = split(tmp_path)
    assert (table.task, len(table), table.class_names) == ("multiclass", 40, ("0", "1", "2", "3", "4"))
    assert table.rows["path"].iloc[0] == "train_images/000000000000.png"
    assert any("test_images/ffffffffffff.png" in note and "1 of 41" in note for note in table.notes)


def test_vindr_cxr_with_a_row_per_box(tmp_path):
    lines = ["image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"]
    for index in range(30):
        draw(tmp_path / "train" / f"{index:032x}.png", index)
        if index % 3 == 0:
            lines += [f"{index:032x},No finding,14,R{reader},,,," for reader in (10, 7, 9)]
        else:
            names = ("Cardiomegaly", "Aortic enlargement")[: index % 3]
            lines += [f"{index:032x},{name},{number},R9,1,2,3,4" for number, name in enumerate(names)]
    write_lines(tmp_path / "train.csv", lines)
    table = split(tmp_path)
    assert (table.task, len(table)) == ("multilabel", 30)
    assert table.class_names == ("Aortic enlargement", "Cardiomegaly", "No finding")
    np.testing.assert_array_equal(table.labels[:3], [[0, 0, 1], [0, 1, 0], [1, 1, 0]])


def test_padchest_with_labels_as_lists(tmp_path):
    lines = [",ImageID,ImageDir,PatientID,PatientBirth,Labels"]
    for index in range(24):
        draw(tmp_path / str(index % 3) / f"2055_{index:04d}.png", index)
        labels = ("\"['pneumonia', 'infiltrates']\"", "['normal']", "\"['infiltrates', 'loc left']\"")[index % 3]
        lines.append(f"{index},2055_{index:04d}.png,{index % 3},8{index // 2:03d},1930,{labels}")
    write_lines(tmp_path / "PADCHEST_labels.csv", lines)
    table = split(tmp_path)
    assert (table.task, table.class_names) == ("multilabel", ("infiltrates", "loc left", "normal", "pneumonia"))
    assert labels_of(table, "0/2055_0000.png") == {"pneumonia": 1, "infiltrates": 1}
    assert table.rows["group"].nunique() == 12
