"""The csv files of a small event in the format of TrackML."""

from pathlib import Path

# Three hits of particle 2^59 + 1, one of 2^59 + 2, one of noise; the truth in another order.
HITS = """hit_id,x,y,z,volume_id,layer_id,module_id
3,-76.566,-11.3673,-1502.5,7,2,1
4,0.1,0.2,0.3,8,4,12
7,1,2,3,8,4,13
9,1e-3,2,3,8,6,1
20,5,6,7,9,2,108
"""
TRUTH = """hit_id,particle_id,tx,ty,tz,tpx,tpy,tpz,weight
20,576460752303423489,0,0,0,0,0,0,0.25
3,576460752303423489,0,0,0,0,0,0,0.25
9,576460752303423490,0,0,0,0,0,0,0.125
4,0,0,0,0,0,0,0,0.0
7,576460752303423489,0,0,0,0,0,0,0.375
"""
PARTICLES = """particle_id,particle_type,vx,vy,vz,px,py,pz,q,nhits
576460752303423490,211,0.1,0.2,0.3,1.5,2.5,3.5,1,99
576460752303423999,211,0,0,0,1,1,1,-1,99
576460752303423489,-211,1,2,3,4,5,6,-1,99
"""
FILES = {"hits": HITS, "truth": TRUTH, "particles": PARTICLES}


def write_files(directory: Path) -> None:
    """Writes event 7."""
    for kind, text in FILES.items():
        (directory / f"event000000007-{kind}.csv").write_text(text)


def change_file(directory: Path, kind: str, old: str, new: str) -> None:
    """Replaces a text in one of the files."""
    path = directory / f"event000000007-{kind}.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
