"""From rosbags to labelled episodes to a better policy."""
