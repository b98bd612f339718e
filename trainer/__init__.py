"""The training side of finechat: chat data in, a verified model directory out."""
