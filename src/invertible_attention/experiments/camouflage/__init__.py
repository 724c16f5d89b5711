"""The paper's third experiment: camouflaged object detection with ordinary and invertible attention."""
